// The studio: every call is one of docs/http.md, every text goes in as text and never as markup.
const $ = (id) => document.getElementById(id);
const state = { picture: null, seed: "", prompt: "", busy: new Set(), brushed: false, kind: "generate", region: "", image: "" };

function headers(more = {}) {
  const token = sessionStorage.getItem("token");
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers(options.headers) });
  if (response.ok) return response;
  if (response.status === 401) $("access").hidden = false;
  let text = `the server answered ${response.status}`;
  try { text = (await response.json()).error.message; } catch { /* not ours */ }
  throw Object.assign(new Error(text), { status: response.status });
}

// Server-sent events of a POST, as [name, data].
async function* events(path, options) {
  const response = await call(path, { method: "POST", ...options, headers: { ...options.headers, accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const [name, data] = text.slice(0, end).split("\n");
      const event = JSON.parse(data.slice(6));
      if (name === "event: error") throw new Error(event.error.message);
      yield [name.slice(7), event];
    }
  }
}

function bytes(base64) { return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)); }

function say(text) { $("status").textContent = text; }

function stop() { for (const one of state.busy) one.abort(); }

// A new picture ends everything that is under way; questions go on side by side.
async function run(work, isPicture = false) {
  if (isPicture) stop();
  const one = new AbortController();
  state.busy.add(one);
  $("stop").disabled = false;
  try { await work(one.signal); }
  catch (error) { say(one.signal.aborted ? "stopped" : error.message); }
  finally {
    state.busy.delete(one);
    $("stop").disabled = !state.busy.size;
    if (isPicture && !state.busy.size) $("progress").value = 0;
  }
}

function preview(base64) {
  $("picture").src = `data:image/jpeg;base64,${base64}`;
  $("picture").hidden = false;
  $("hint").hidden = true;
}

function show(blob, alt, name) {
  state.picture = blob;
  state.image = name;
  if ($("picture").dataset.url) URL.revokeObjectURL($("picture").dataset.url);
  const url = URL.createObjectURL(blob);
  Object.assign($("picture"), { src: url, alt, hidden: false });
  $("picture").dataset.url = url;
  Object.assign($("download"), { href: url, download: name });
  $("download").removeAttribute("aria-disabled");
  $("hint").hidden = true;
  $("brush").hidden = false;
  clearBrush();
  $("bars").replaceChildren();
  for (const button of document.querySelectorAll(".needs")) button.disabled = false;
}

function face(blob, alt, chosen) {
  const button = document.createElement("button"), image = document.createElement("img");
  image.src = URL.createObjectURL(blob);
  image.alt = alt;
  button.type = "button";
  button.addEventListener("click", chosen);
  button.append(image);
  return button;
}

function remember(blob, alt, name) {
  const item = document.createElement("li");
  item.append(face(blob, alt, () => show(blob, alt, name)));
  $("history").prepend(item);
  while ($("history").children.length > 24) {
    URL.revokeObjectURL($("history").lastChild.querySelector("img").src);
    $("history").lastChild.remove();
  }
}

async function follow(path, options, alt, signal) {
  let previews = 0;
  for await (const [name, event] of events(path, { ...options, signal })) {
    if (name === "preview") {
      if (event.picture) { preview(event.picture); previews += 1; }
      Object.assign($("progress"), { value: event.step, max: event.steps });
      say(`step ${event.step} of ${event.steps}`);
    } else {
      const { decoding, picture, timings, wording } = event;
      const blob = new Blob([bytes(picture.image)], { type: "image/png" });
      const name_ = `${path === "/v1/edit" ? "edited" : "face"}-${decoding.seed}.png`;
      state.seed = decoding.seed;
      show(blob, alt, name_);
      remember(blob, alt, name_);
      const unknown = wording.unmatched?.length ? `; not understood: ${wording.unmatched.join(", ")}` : "";
      say(`seed ${decoding.seed}, ${decoding.steps} steps, ${Math.round(timings.total_ms)} ms${unknown}`);
      $("picture").dataset.previews = previews;
    }
  }
}

const shown = { every_steps: 1, picture_side: 256 };

$("draw").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value, asked = { prompt, previews: shown };
  if ($("seed").value) asked.seed = $("seed").value;
  if ($("steps").value) asked.options = { steps: Number($("steps").value) };
  Object.assign(state, { kind: "generate", prompt });
  run((signal) => follow("/v1/generate", { body: JSON.stringify(asked), headers: { "content-type": "application/json" } }, prompt, signal), true);
});

$("draw-gallery").addEventListener("click", () => run(async (signal) => {
  const prompt = $("prompt").value, first = $("seed").value ? BigInt($("seed").value) : BigInt(Math.floor(Math.random() * 1e9));
  const options = $("steps").value ? { steps: Number($("steps").value) } : {};
  Object.assign(state, { kind: "generate", prompt });
  $("gallery").replaceChildren();
  let done = 0;
  Object.assign($("progress"), { value: 0, max: 6 });
  await Promise.all([0n, 1n, 2n, 3n, 4n, 5n].map(async (more) => {
    const seed = String(first + more), item = document.createElement("li");
    $("gallery").append(item);
    const body = JSON.stringify({ prompt, seed, options });
    const response = await call("/v1/generate", { method: "POST", body, signal, headers: { "content-type": "application/json", accept: "image/png" } });
    const blob = await response.blob(), alt = `${prompt}, seed ${seed}`;
    item.append(face(blob, alt, () => { Object.assign(state, { kind: "generate", prompt, seed }); show(blob, alt, `face-${seed}.png`); remember(blob, alt, `face-${seed}.png`); $("seed").value = seed; say(`seed ${seed}`); }));
    done += 1;
    $("progress").value = done;
    say(`${done} of 6 faces`);
  }));
}, true));

$("stop").addEventListener("click", stop);

function form(values) {
  const body = new FormData();
  body.append("image", state.picture, "image");
  for (const [name, value] of Object.entries(values)) body.append(name, value);
  return body;
}

$("regions").addEventListener("click", (event) => {
  if (event.target.dataset.region === undefined) return;
  for (const button of $("regions").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button === event.target));
  say(event.target.dataset.region ? `the edit draws ${event.target.textContent}` : "the edit draws what you brush");
});

$("edit").addEventListener("submit", (event) => {
  event.preventDefault();
  const region = document.querySelector('#regions [aria-pressed="true"]').dataset.region, prompt = $("change").value;
  if (!region && !state.brushed) { say("brush over the picture first, or choose a region"); return; }
  run(async (signal) => {
    const body = form({ prompt, "previews.every_steps": 1, "previews.picture_side": 256, ...(region ? { name: region } : {}) });
    if (!region) body.append("mask", await mask(), "mask.png");
    if ($("seed").value) body.append("seed", $("seed").value);
    Object.assign(state, { kind: "edit", prompt, region, edited: state.image });
    await follow("/v1/edit", { body }, prompt, signal);
  }, true);
});

function line(text, kind) {
  const paragraph = document.createElement("p");
  paragraph.className = kind;
  paragraph.textContent = text;
  $("chat").append(paragraph);
  return paragraph;
}

function sensitive() { return $("sensitive").checked ? { include_sensitive: "true" } : {}; }

async function answer(path, values, asked, signal) {
  line(asked, "asked");
  const paragraph = line("", "answer");
  for await (const [name, event] of events(path, { body: form(values), signal })) {
    paragraph.textContent = name === "piece" ? paragraph.textContent + event.text : event.text;
    $("chat").scrollTop = $("chat").scrollHeight;
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value;
  $("question").value = "";
  run((signal) => answer("/v1/ask", { question, ...sensitive() }, question, signal));
});
$("describe").addEventListener("click", () => run((signal) => answer("/v1/describe", sensitive(), "Describe the picture.", signal)));

$("analyze").addEventListener("click", () => run(async (signal) => {
  const { report } = await (await call("/v1/analyze", { method: "POST", body: form(sensitive()), signal })).json();
  const rows = [];
  for (const slot of report.slots) {
    const term = document.createElement("dt");
    term.textContent = slot.name.replaceAll("_", " ");
    rows.push(term);
    for (const { value, probability } of [...slot.values].sort((a, b) => b.probability - a.probability).slice(0, 3)) {
      const row = document.createElement("dd"), label = document.createElement("span"), bar = document.createElement("meter"), number = document.createElement("span");
      label.textContent = value;
      bar.value = probability;
      bar.setAttribute("aria-label", `${slot.name} ${value}`);
      number.textContent = `${(100 * probability).toFixed(0)} %`;
      Object.assign(row.dataset, { slot: slot.name, value, probability });
      row.append(label, bar, number);
      rows.push(row);
    }
  }
  $("bars").replaceChildren(...rows);
  say("the attributes are there");
}));

// The brush ---------------------------------------------------------------------------------------------------------------------------
const brush = $("brush").getContext("2d");
function clearBrush() { brush.clearRect(0, 0, 384, 384); state.brushed = false; }
let last = null;
function stroke(event) {
  const box = $("brush").getBoundingClientRect();
  const point = [((event.clientX - box.left) / box.width) * 384, ((event.clientY - box.top) / box.height) * 384];
  Object.assign(brush, { strokeStyle: "#ff2d87", lineWidth: 48, lineCap: "round" });
  brush.beginPath();
  brush.moveTo(...(last ?? point));
  brush.lineTo(...point);
  brush.stroke();
  last = point;
  state.brushed = true;
}
$("brush").addEventListener("pointerdown", (event) => { $("brush").setPointerCapture(event.pointerId); last = null; stroke(event); });
$("brush").addEventListener("pointermove", (event) => { if (event.buttons) stroke(event); });
$("clear").addEventListener("click", clearBrush);
function mask() {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  canvas.width = canvas.height = 384;
  context.fillStyle = "#000";
  context.fillRect(0, 0, 384, 384);
  const pixels = context.getImageData(0, 0, 384, 384), own = brush.getImageData(0, 0, 384, 384).data;
  for (let at = 0; at < own.length; at += 4) if (own[at + 3] > 127) pixels.data.fill(255, at, at + 3);
  context.putImageData(pixels, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// Pictures from outside ---------------------------------------------------------------------------------------------------------------
// A square of at most 1024 pixels: the server takes the centred square too, and 4 MiB at most.
async function open_(file) {
  if (!file) return;
  try {
    const image = await createImageBitmap(file), side = Math.min(image.width, image.height), size = Math.min(side, 1024);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = size;
    canvas.getContext("2d").drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, size, size);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
    show(blob, "a picture of yours", "picture.jpg");
    remember(blob, "a picture of yours", "picture.jpg");
    say("the picture is open");
  } catch { say("this file is no picture that the browser can read"); }
}
$("file").addEventListener("change", () => open_($("file").files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") open_(event.dataTransfer.files[0]);
  });
}

// The same elsewhere ------------------------------------------------------------------------------------------------------------------
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const copies = {
  generate: {
    cli: (s) => `f2edge generate ${quoted(s.prompt)} --seed ${s.seed} -o face.png`,
    python: (s) => `from f2edge import FacePipeline\n\nface = FacePipeline.load("nano").generate(${JSON.stringify(s.prompt)}, seeds=${s.seed})[0]\nface.save("face.png")`,
    curl: (s) => `curl -s ${location.origin}/v1/generate -H 'Content-Type: application/json' -H 'Accept: image/png' -d ${quoted(JSON.stringify({ prompt: s.prompt, seed: s.seed }))} -o face.png`,
  },
  edit: {
    cli: (s) => s.region && `f2edge edit ${quoted(s.edited)} ${quoted(s.prompt)} --region ${quoted(s.region)} --seed ${s.seed} -o edited.png`,
    python: (s) => s.region && `from f2edge import FacePipeline\n\nface = FacePipeline.load("nano").edit(${JSON.stringify(s.edited)}, ${JSON.stringify(s.prompt)}, ${JSON.stringify(s.region)}, seed=${s.seed})\nface.save("edited.png")`,
    curl: (s) => `curl -s ${location.origin}/v1/edit -H 'Accept: image/png' -F image=@${s.edited} -F prompt=${quoted(s.prompt)} -F ${s.region ? `name=${quoted(s.region)}` : "mask=@mask.png"} -F seed=${s.seed} -o edited.png`,
  },
};
$("copies").addEventListener("click", async (event) => {
  const make = copies[state.kind][event.target.dataset?.as];
  if (!event.target.dataset?.as) return;
  if (!state.seed) { say("draw a face first"); return; }
  const text = make(state) || copies[state.kind].curl(state); // a brushed mask is a file only curl's line names
  $("copied").textContent = text;
  try { await navigator.clipboard.writeText(text); say("copied"); } catch { say("select the text below to copy it"); }
});

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("access").hidden = true;
  start();
});

async function start() {
  try {
    const model = await (await call("/v1/model")).json();
    $("model").textContent = `${model.name}: ${model.description}`;
    for (const button of document.querySelectorAll('#regions button:not([data-region=""])')) button.remove();
    for (const name of model.regions) {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: name.replaceAll("_", " ") });
      button.dataset.region = name;
      button.setAttribute("aria-pressed", "false");
      $("regions").append(button);
    }
    $("sensitive-row").hidden = model.faces === "drawn";
  } catch (error) {
    $("model").textContent = error.message;
    if (error.status === 503) setTimeout(start, 500);
  }
}
start();
