"""``/v1/chat/completions`` as OpenAI's clients call it: a picture and a question, the answer in pieces or as a whole.

The newest picture of the conversation is looked at, with the text of the newest message of the user.  A text that is empty or begins with
"describe" or "caption" is answered by ``Describe``, any other by ``Ask``; the model knows nothing of earlier turns.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

from f2edge.http.bodies import Body, filled, picture_bytes
from f2edge.http.calls import Reply, Work
from f2edge.http.exchange import Exchange
from f2edge.http.images import check_model
from f2edge.http.rest import event_of
from f2edge.server.status import bad_field
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import ModelFacts

_DESCRIBES = re.compile(r"\s*(please\s+)?(describe|caption)\b", re.IGNORECASE)
_MOST_MESSAGES = 256


def chat_work(facts: ModelFacts, body: Body, exchange: Exchange) -> Work:
    """Return the call that a conversation asks for."""
    if body.is_form:
        raise bad_field("content-type", "send application/json", "MEDIA")
    check_model(body, facts)
    if body.values.get("n") not in (None, 1):
        raise bad_field("n", "there is one answer; set n to 1")
    parts = list(_parts(body.values.get("messages")))
    url = next((part["url"] for part in reversed(parts) if part["type"] == "image"), None)
    if url is None:
        raise bad_field("messages", "no picture; send one as image_url with a data URI (data:image/png;base64,…)", "IMAGE")
    last = max((part["message"] for part in parts if part["role"] == "user"), default=-1)
    text = " ".join(part["text"] for part in parts if part["message"] == last and part["type"] == "text")
    most = body.values.get("max_completion_tokens")
    most = body.values.get("max_tokens") if most is None else most
    values = {} if most is None else {"max_tokens": most}
    if "include_sensitive" in body.values:
        values["include_sensitive"] = body.values["include_sensitive"]
    message: Any
    if not text.strip() or _DESCRIBES.match(text):
        method, message = "Describe", filled(pb.DescribeRequest, values)
    else:
        method, message = "Ask", filled(pb.AskRequest, {**values, "question": text})
    message.image = picture_bytes(url, "messages")
    return Work(method, [message], _reply(body, facts, exchange, message))


def _parts(messages: Any) -> Iterator[dict[str, Any]]:
    """Give the texts and pictures of a conversation in order."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= _MOST_MESSAGES:
        raise bad_field("messages", f"messages must be a list of 1 … {_MOST_MESSAGES} messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise bad_field("messages", f"message {index} must be an object with role and content")
        content = message.get("content")
        role = message.get("role")
        for part in content if isinstance(content, list) else [{"type": "text", "text": content or ""}]:
            if not isinstance(part, dict):
                raise bad_field("messages", f"message {index} has a part that is no object")
            kind = part.get("type")
            if kind == "text" and isinstance(part.get("text"), str):
                yield {"message": index, "role": role, "type": "text", "text": part["text"]}
            elif kind == "image_url" and isinstance(part.get("image_url"), dict):
                yield {"message": index, "role": role, "type": "image", "url": part["image_url"].get("url")}
            else:
                raise bad_field("messages", f"message {index} has a part that is neither text nor image_url")


def _reply(body: Body, facts: ModelFacts, exchange: Exchange, message: pb.AskRequest | pb.DescribeRequest) -> Reply:
    options = body.values.get("stream_options")
    usage = isinstance(options, dict) and options.get("include_usage") is True
    common: dict[str, Any] = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": facts.name}
    if message.include_sensitive:
        common["include_sensitive"] = True
    if body.values.get("stream") is True:
        return _StreamReply(exchange, common, facts, message.max_tokens, with_usage=usage)
    return _WholeReply(exchange, common, facts, message.max_tokens)


class _WholeReply:
    """The whole answer as one document."""

    def __init__(self, exchange: Exchange, common: dict[str, Any], facts: ModelFacts, most: int) -> None:
        self._exchange, self._common, self._facts, self._most = exchange, common, facts, most
        self._answer = pb.Answer()

    async def on_message(self, _index: int, message: Any) -> None:
        name, value = event_of(message)
        if name == "answer":
            self._answer = value

    async def finish(self) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": self._answer.text, "refusal": None}, "logprobs": None}
        choices = [{**choice, "finish_reason": self._reason()}]
        await self._exchange.document({**self._common, "object": "chat.completion", "choices": choices, "usage": self._usage()})

    def _reason(self) -> str:
        return "length" if self._most and len(self._answer.tokens) >= self._most else "stop"

    def _usage(self) -> dict[str, int]:
        """Count the picture's tokens and the answer's; those of the question are not counted."""
        prompt, answer = self._facts.tokens, len(self._answer.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class _StreamReply(_WholeReply):
    """Pieces as they come."""

    def __init__(self, exchange: Exchange, common: dict[str, Any], facts: ModelFacts, most: int, *, with_usage: bool) -> None:
        super().__init__(exchange, common, facts, most)
        self._with_usage = with_usage

    async def on_message(self, index: int, message: Any) -> None:
        name, value = event_of(message)
        if not self._exchange.started:
            await self._chunk({"role": "assistant", "content": ""})
        if name == "piece":
            await self._chunk({"content": value})
        await super().on_message(index, message)

    async def finish(self) -> None:
        await self._chunk({}, self._reason())
        if self._with_usage:
            await self._exchange.event({**self._common, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()})
        await self._exchange.event("[DONE]")
        await self._exchange.end()

    async def _chunk(self, delta: dict[str, str], reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        await self._exchange.event({**self._common, "object": "chat.completion.chunk", "choices": [choice]})
