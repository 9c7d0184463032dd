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

function remember(blob, alt, name) {
  const item = document.createElement("li"), button = document.createElement("button"), image = document.createElement("img");
  image.src = URL.createObjectURL(blob);
  image.alt = alt;
  button.type = "button";
  button.addEventListener("click", () => show(blob, alt, name));
  button.append(image);
  item.append(button);
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

$("stop").addEventListener("click", stop);

function form(values) {
  const body = new FormData();
  body.append("image", state.picture, "image");
  for (const [name, value] of Object.entries(values)) body.append(name, value);
  return body;
}

$("edit").addEventListener("submit", (event) => {
  event.preventDefault();
  const region = $("region").value, prompt = $("change").value;
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
  run((signal) => answer("/v1/ask", { question }, question, signal));
});
$("describe").addEventListener("click", () => run((signal) => answer("/v1/describe", {}, "Describe the picture.", signal)));

$("analyze").addEventListener("click", () => run(async (signal) => {
  const { report } = await (await call("/v1/analyze", { method: "POST", body: form({}), signal })).json();
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
    python: (s) => `from f2edge import FacePipeline\n\nface = FacePipeline.load("nano").generate(${JSON.stringify(s.prompt)}, seeds=${s.seed})[0]`,
    curl: (s) => `curl -s ${location.origin}/v1/generate -H 'Content-Type: application/json' -H 'Accept: image/png' -d ${quoted(JSON.stringify({ prompt: s.prompt, seed: s.seed }))} -o face.png`,
  },
  edit: {
    curl: (s) => `curl -s ${location.origin}/v1/edit -H 'Accept: image/png' -F image=@${s.edited} -F prompt=${quoted(s.prompt)} -F ${s.region ? `name=${quoted(s.region)}` : "mask=@mask.png"} -F seed=${s.seed} -o edited.png`,
  },
};
$("copies").addEventListener("click", async (event) => {
  const make = copies[state.kind][event.target.dataset?.as];
  if (!event.target.dataset?.as) return;
  if (!state.seed) { say("draw a face first"); return; }
  const text = make ? make(state) : copies[state.kind].curl(state);
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
    for (const name of model.regions) $("region").append(new Option(name.replaceAll("_", " "), name));
  } catch (error) {
    $("model").textContent = error.message;
    if (error.status === 503) setTimeout(start, 500);
  }
}
start();
