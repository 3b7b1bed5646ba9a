#!/usr/bin/env python3
"""The openai package against a real server: sync, async, streams, log-probabilities, n, stop, tools, errors.

usage: openai_client.py POLAR GOLDEN_MODEL_FOLDER      (pip install openai)
"""

import asyncio
import json
import pathlib
import sys
import tempfile

import openai

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))
from expect import expect, finish  # noqa: E402
from server import Server  # noqa: E402
from tiny_model import make_model  # noqa: E402


def refused(kind, call, **wanted):
    try:
        call()
    except kind as error:
        for key, value in wanted.items():
            expect(getattr(error, key) == value, f"{kind.__name__}.{key} is {getattr(error, key)!r}, wanted {value!r}")
        return expect(True, "")
    except openai.APIError as error:
        return expect(False, f"{error!r} is no {kind.__name__}")
    expect(False, f"nothing refused: wanted {kind.__name__}")


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a town", "parameters": {
    "type": "object", "properties": {"town": {"type": "string"}}}}}]
MORE = {"ignore_eos": True}

with tempfile.TemporaryDirectory() as scratch:
    model = make_model(sys.argv[2], pathlib.Path(scratch) / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% if tools %}{% for t in tools %}<{{ t.function.name }}>{% endfor %}{% endif %}" + config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with Server(sys.argv[1], model, "--api-key", "k", "--served-model-name", "tiny", "--kv-memory", "4MiB") as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
        expect([m.id for m in client.models.list()] == ["tiny"], "models")

        whole = client.completions.create(model="tiny", prompt="Hello", max_tokens=20, temperature=0, logprobs=2, extra_body=MORE)
        text = whole.choices[0].text
        expect(whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 20, "a completion")
        logprobs = whole.choices[0].logprobs
        expect(len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 20
               and all(len(top) >= 2 for top in logprobs.top_logprobs), "log-probabilities of a completion")
        echo = client.completions.create(model="tiny", prompt="Hello", max_tokens=0, echo=True, logprobs=1)
        expect(echo.choices[0].text == "Hello" and echo.choices[0].logprobs.token_logprobs[0] is None, "echo")
        stream = client.completions.create(model="tiny", prompt="Hello", max_tokens=20, temperature=0, stream=True,
                                           stream_options={"include_usage": True}, extra_body=MORE)
        parts = list(stream)
        expect("".join(c.text for part in parts for c in part.choices) == text, "a stream says the same")
        expect(parts[-1].usage.completion_tokens == 20, "a stream's usage")
        stop = text[5:7]
        cut = client.completions.create(model="tiny", prompt="Hello", max_tokens=20, temperature=0, stop=[stop], extra_body=MORE)
        expect(cut.choices[0].text == text[: text.find(stop)] and cut.choices[0].finish_reason == "stop", "stop")
        many = client.completions.create(model="tiny", prompt=["Hello", "Hi"], n=2, max_tokens=5, temperature=1, seed=3, extra_body=MORE)
        expect([c.index for c in many.choices] == [0, 1, 2, 3] and many.usage.completion_tokens == 20, "two prompts, two answers each")
        ids = client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=2)
        expect(ids.usage.prompt_tokens == 3, "token ids")

        messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
        chat = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=10, temperature=0, logprobs=True,
                                              top_logprobs=3, n=2, extra_body=MORE)
        expect(chat.choices[0].message.role == "assistant" and len(chat.choices) == 2, "a chat")
        content = chat.choices[0].logprobs.content
        expect(len(content) == 10 and all(len(t.top_logprobs) == 3 for t in content), "log-probabilities of a chat")
        expect("".join(bytes(t.bytes).decode() for t in content if t.bytes).replace("<s>", "") == chat.choices[0].message.content,
               "the bytes of a chat's tokens are its text")
        expect(chat.model_extra is not None and chat.usage.model_extra["polar"]["kv_density"] == 1.0, "usage.polar")
        with_tools = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1, tools=TOOLS)
        expect(with_tools.usage.prompt_tokens == chat.usage.prompt_tokens + len("<weather>"), "tools reach the template")
        told = client.chat.completions.create(model="tiny", messages=messages, max_tokens=10, temperature=0, stream=True, extra_body=MORE)
        told = list(told)
        expect(told[0].choices[0].delta.role == "assistant", "the first delta names the role")
        expect("".join(p.choices[0].delta.content or "" for p in told) == chat.choices[0].message.content, "a chat's stream")

        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
        refused(openai.BadRequestError, lambda: client.chat.completions.create(
            model="tiny", messages=messages, response_format=schema), param="response_format", status_code=400)
        refused(openai.BadRequestError, lambda: client.completions.create(model="tiny", prompt="a", temperature=-1), param="temperature")
        refused(openai.BadRequestError, lambda: client.completions.create(model="tiny", prompt="a" * 999), param="prompt")
        refused(openai.NotFoundError, lambda: client.completions.create(model="other", prompt="a"), code="model_not_found")
        refused(openai.AuthenticationError, lambda: openai.OpenAI(base_url=url, api_key="x", max_retries=0).models.list(),
                code="invalid_api_key")
        refused(openai.NotFoundError, lambda: client.embeddings.create(model="tiny", input="a"))

        async def together():
            async with openai.AsyncOpenAI(base_url=url, api_key="k") as asynchronous:
                async def one(streamed):
                    answer = await asynchronous.completions.create(model="tiny", prompt="Hello", max_tokens=20, temperature=0,
                                                                   stream=streamed, extra_body=MORE)
                    if not streamed:
                        return answer.choices[0].text
                    return "".join([part.choices[0].text async for part in answer])
                return await asyncio.gather(*(one(i % 2 == 0) for i in range(16)))

        expect(set(asyncio.run(together())) == {text}, "16 at once, asynchronous")
        leaving = client.completions.create(model="tiny", prompt="Hello", max_tokens=100, stream=True, extra_body=MORE)
        next(iter(leaving))
        leaving.close()
        expect(server.terminate() == 0, "exit code")

print(f"openai {openai.__version__}")
finish()
