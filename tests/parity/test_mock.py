"""The official clients against the mock of the services (tests/net/mock.c): what it says is the
real wire format, for their typed models read it. Every reply is also held against the fields that
the clients' models declare."""
import asyncio
import json
import time

import anthropic
import openai

from harness import MOCK, Process, done, eq, near, raises, test
from typed import typed

mock = Process("mock", [MOCK, "--latency-ms", "1"])
ours = openai.OpenAI(base_url=mock.url("/v1"), api_key="k-parity", max_retries=2)
theirs = anthropic.Anthropic(base_url=mock.url(), api_key="k-parity", max_retries=2)

ASK = [{"role": "system", "content": "Be brief."},
       {"role": "user", "content": "Tell of the moon, its seas and its dark side."}]
CHAT = {"model": "mock", "messages": ASK, "seed": 7}
MESSAGE = {"model": "mock", "max_tokens": 64, "system": "Be brief.", "messages": ASK[1:]}


def script(**values):
    mock.post("/script", {"clear": True, **values})


@test
def openai_chat():
    r = typed(ours.chat.completions.create(**CHAT))
    eq(r.object, "chat.completion")
    eq(r.choices[0].finish_reason, "stop")
    eq(r.choices[0].message.role, "assistant")
    eq(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens)
    eq(r._request_id[:4], "req_")
    eq(ours.chat.completions.create(**CHAT).choices[0].message.content, r.choices[0].message.content, "same seed")


@test
def openai_chat_n_stop_max_tokens():
    whole = ours.chat.completions.create(**CHAT, n=3)
    eq([c.index for c in whole.choices], [0, 1, 2])
    text = whole.choices[0].message.content
    word = text.split()[2]
    r = ours.chat.completions.create(**CHAT, stop=[word])
    eq(r.choices[0].message.content, text[:text.index(word)], "stop")
    r = ours.chat.completions.create(**CHAT, max_completion_tokens=2)
    eq((r.choices[0].finish_reason, r.usage.completion_tokens), ("length", 2))


@test
def openai_stream():
    plain = ours.chat.completions.create(**CHAT)
    stream = ours.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    chunks = [typed(c) for c in stream]
    eq("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), plain.choices[0].message.content)
    eq(chunks[0].choices[0].delta.role, "assistant")
    eq([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")
    eq((chunks[-1].choices, chunks[-1].usage.total_tokens), ([], plain.usage.total_tokens))
    eq({c.id for c in chunks}, {plain.id})


@test
def openai_stream_helper():
    with ours.chat.completions.stream(**CHAT, logprobs=True, top_logprobs=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    eq({"content.delta", "content.done", "logprobs.content.delta"} <= kinds, True, str(kinds))
    eq(final.choices[0].message.content, ours.chat.completions.create(**CHAT).choices[0].message.content)


@test
def openai_logprobs():
    r = typed(ours.chat.completions.create(**CHAT, logprobs=True, top_logprobs=5))
    content = r.choices[0].logprobs.content
    eq("".join(t.token for t in content), r.choices[0].message.content)
    for t in content:
        eq(bytes(t.bytes).decode(), t.token)
        eq(len(t.top_logprobs), 5)
        eq(t.top_logprobs[0].token, t.token)
        near(t.top_logprobs[0].logprob, t.logprob, 1e-9)
    streamed = ours.chat.completions.create(**CHAT, logprobs=True, top_logprobs=5, stream=True)
    again = [t for c in streamed for t in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    eq([t.logprob for t in again], [t.logprob for t in content], "streamed")


@test
def openai_schema():
    schema = {"type": "object", "properties": {"verdict": {"type": "string", "enum": ["A", "B", "tie"]},
              "score": {"type": "integer", "minimum": 1, "maximum": 5}}, "required": ["verdict", "score"]}
    r = ours.chat.completions.create(**CHAT, response_format={
        "type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}})
    answer = json.loads(r.choices[0].message.content)
    eq((answer["verdict"] in ("A", "B", "tie"), 1 <= answer["score"] <= 5), (True, True), str(answer))


@test
def openai_completions():
    ask = {"model": "mock", "prompt": "Tell of the moon.", "max_tokens": 8, "seed": 1}
    r = typed(ours.completions.create(**ask, logprobs=3))
    p = r.choices[0].logprobs
    eq("".join(p.tokens), r.choices[0].text)
    eq([r.choices[0].text[o:o + len(t)] for o, t in zip(p.text_offset, p.tokens)], p.tokens)
    eq([len(t) for t in p.top_logprobs], [3] * len(p.tokens))
    eq("".join(c.choices[0].text for c in ours.completions.create(**ask, stream=True) if c.choices), r.choices[0].text)


@test
def openai_models():
    eq("mock" in [typed(m).id for m in ours.models.list()], True)


@test
def openai_errors():
    once = ours.with_options(max_retries=0)
    for status, kind in ((400, openai.BadRequestError), (401, openai.AuthenticationError), (404, openai.NotFoundError),
                         (403, openai.PermissionDeniedError), (409, openai.ConflictError), (429, openai.RateLimitError),
                         (500, openai.InternalServerError), (503, openai.InternalServerError)):
        script(next=[str(status)])
        problem = raises(kind, lambda: once.chat.completions.create(**CHAT))
        eq(problem.status_code, status)
        eq(problem.request_id[:4], "req_")
        if status != 500:                    # a proxy's page
            eq(bool(problem.message and problem.type), True, str(status))
    script(next=["quota"])
    eq(raises(openai.RateLimitError, lambda: once.chat.completions.create(**CHAT)).code, "insufficient_quota")
    script()
    raises(openai.NotFoundError, lambda: once.chat.completions.create(**{**CHAT, "model": "no-such-model"}))
    raises(openai.BadRequestError, lambda: once.chat.completions.create(**CHAT, top_logprobs=3))
    raises(openai.BadRequestError, lambda: once.chat.completions.create(**{**CHAT, "model": "o3"}, temperature=0.5))
    script(next=["reset"])
    raises(openai.APIConnectionError, lambda: once.chat.completions.create(**CHAT))
    script(next=["stream_error"])
    raises(openai.APIError, lambda: list(once.chat.completions.create(**CHAT, stream=True)))


@test
def openai_retries():
    script(next=["429", "500"])
    began = time.monotonic()
    text = ours.chat.completions.create(**CHAT).choices[0].message.content
    stats = mock.get("/stats")
    eq((bool(text), stats["requests"], stats["by_status"]), (True, 3, {"200": 1, "429": 1, "500": 1}))
    script(next=["reset", "429"])
    ours.chat.completions.create(**CHAT)
    eq(mock.get("/stats")["requests"], 3)
    script(next=["429", "429", "429"])
    raises(openai.RateLimitError, lambda: ours.chat.completions.create(**CHAT))
    eq(mock.get("/stats")["requests"], 3, "two retries and no more")
    script()
    return f"{time.monotonic() - began:.1f} s"


@test
def openai_parallel():
    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=mock.url("/v1"), api_key="k") as client:
            async def one(i):
                stream = await client.chat.completions.create(**{**CHAT, "seed": i}, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream])
            return await asyncio.gather(*(one(i) for i in range(32)))
    script(stream_ms=2)
    texts = asyncio.run(all_at_once())
    script()
    for i in (0, 31):
        eq(texts[i], ours.chat.completions.create(**{**CHAT, "seed": i}).choices[0].message.content)
    eq(len(set(texts)) > 16, True, "different seeds, different texts")


@test
def openai_batches():
    lines = [json.dumps({"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions",
                         "body": {**CHAT, "seed": i}}) for i in range(5)]
    script(batch_polls=1)
    file = typed(ours.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch"))
    eq(file.purpose, "batch")
    made = typed(ours.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                                     metadata={"job": "parity"}))
    eq((made.object, made.metadata), ("batch", {"job": "parity"}))
    eq(made.id in [typed(b).id for b in ours.batches.list(limit=10)], True, "list")
    for _ in range(20):
        now = typed(ours.batches.retrieve(made.id))
        if now.status == "completed":
            break
    eq((now.status, now.request_counts.total), ("completed", 5))
    answers = {}
    for name in (now.output_file_id, now.error_file_id):
        for line in ours.files.content(name).text.splitlines() if name else []:
            row = json.loads(line)
            answers[row["custom_id"]] = row
    eq(sorted(answers), [f"c{i}" for i in range(5)])
    for i in range(5):
        response = answers[f"c{i}"]["response"]
        if response["status_code"] == 200:
            want = ours.chat.completions.create(**{**CHAT, "seed": i}).choices[0].message.content
            eq(response["body"]["choices"][0]["message"]["content"], want)


@test
def anthropic_message():
    r = typed(theirs.messages.create(**MESSAGE))
    eq((r.type, r.role, r.stop_reason, r.content[0].type), ("message", "assistant", "end_turn", "text"))
    eq(r.usage.output_tokens > 0 and r.usage.input_tokens > 0, True)
    eq(r._request_id[:4], "req_")
    r = theirs.messages.create(**{**MESSAGE, "max_tokens": 2})
    eq((r.stop_reason, r.usage.output_tokens), ("max_tokens", 2))


@test
def anthropic_stop_sequence():
    text = theirs.messages.create(**MESSAGE).content[0].text
    word = text.split()[2]
    r = theirs.messages.create(**MESSAGE, stop_sequences=[word])
    eq((r.stop_reason, r.stop_sequence, r.content[0].text), ("stop_sequence", word, text[:text.index(word)]))


@test
def anthropic_stream():
    plain = theirs.messages.create(**MESSAGE)
    events = [typed(e) for e in theirs.messages.create(**MESSAGE, stream=True)]
    kinds = [e.type for e in events]
    eq((kinds[0], kinds[1], kinds[-3:]), ("message_start", "content_block_start",
                                          ["content_block_stop", "message_delta", "message_stop"]))
    with theirs.messages.stream(**MESSAGE) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    eq(text, plain.content[0].text)
    eq((final.content[0].text, final.stop_reason, final.usage.output_tokens),
       (plain.content[0].text, plain.stop_reason, plain.usage.output_tokens))


@test
def anthropic_schema():
    schema = {"type": "object", "properties": {"verdict": {"type": "string", "enum": ["A", "B"]}},
              "required": ["verdict"], "additionalProperties": False}
    r = theirs.messages.create(**MESSAGE, output_config={"format": {"type": "json_schema", "schema": schema}})
    eq(json.loads(r.content[0].text)["verdict"] in ("A", "B"), True)


@test
def anthropic_errors():
    once = theirs.with_options(max_retries=0)
    kinds = ((400, anthropic.BadRequestError, "invalid_request_error"),
             (401, anthropic.AuthenticationError, "authentication_error"),
             (403, anthropic.PermissionDeniedError, "permission_error"),
             (404, anthropic.NotFoundError, "not_found_error"),
             (413, None, "request_too_large"), (429, anthropic.RateLimitError, "rate_limit_error"),
             (529, None, "overloaded_error"))
    for status, kind, word in kinds:
        script(next=[str(status)])
        try:
            once.messages.create(**MESSAGE)
            raise AssertionError(f"{status} was taken for an answer")
        except anthropic.APIStatusError as problem:
            eq((problem.status_code, problem.body["type"], problem.body["error"]["type"]), (status, "error", word))
            eq(kind is None or type(problem) is kind, True, f"{status} is {type(problem).__name__}")
            eq(problem.request_id[:4], "req_")
    script()
    # an error after the 200 of a stream
    script(next=["stream_error"])
    try:
        list(once.messages.create(**MESSAGE, stream=True))
        raise AssertionError("an error event in a stream was taken for an end")
    except anthropic.APIStatusError as problem:
        eq(problem.body["error"]["type"], "overloaded_error")
    script()


@test
def anthropic_retries():
    script(next=["429", "529"])
    eq(bool(theirs.messages.create(**MESSAGE).content[0].text), True)
    eq(mock.get("/stats")["requests"], 3)
    script(next=["500", "reset", "503"])
    raises(anthropic.ServiceUnavailableError, lambda: theirs.messages.create(**MESSAGE))
    eq(mock.get("/stats")["requests"], 3, "two retries and no more")
    script()


@test
def anthropic_models():
    eq("mock" in [typed(m).id for m in theirs.models.list()], True)


@test
def anthropic_batches():
    script(batch_polls=1)
    def ask(i):
        content = f"Tell of moon number {i}, please, and of its craters."
        return {**MESSAGE, "messages": [{"role": "user", "content": content}]}
    made = typed(theirs.messages.batches.create(requests=[{"custom_id": f"c{i}", "params": ask(i)} for i in range(5)]))
    eq((made.type, made.processing_status), ("message_batch", "in_progress"))
    eq(made.id in [typed(b).id for b in theirs.messages.batches.list(limit=10)], True, "list")
    for _ in range(20):
        now = typed(theirs.messages.batches.retrieve(made.id))
        if now.processing_status == "ended":
            break
    eq(now.processing_status, "ended")
    rows = {r.custom_id: typed(r) for r in theirs.messages.batches.results(made.id)}
    eq(sorted(rows), [f"c{i}" for i in range(5)])
    for i, row in enumerate(rows[f"c{i}"] for i in range(5)):
        if row.result.type == "succeeded":
            eq(row.result.message.content[0].text, theirs.messages.create(**ask(i)).content[0].text)
    eq(sum(1 for r in rows.values() if r.result.type == "succeeded"), now.request_counts.succeeded)
    script()


@test
def key_is_asked_for():
    with Process("mock_key", [MOCK, "--latency-ms", "1", "--key", "right"]) as other:
        for key, fits in (("right", True), ("wrong", False)):
            o = openai.OpenAI(base_url=other.url("/v1"), api_key=key)
            a = anthropic.Anthropic(base_url=other.url(), api_key=key)
            if fits:
                o.chat.completions.create(**CHAT)
                a.messages.create(**MESSAGE)
            else:
                raises(openai.AuthenticationError, lambda: o.chat.completions.create(**CHAT))
                raises(anthropic.AuthenticationError, lambda: a.messages.create(**MESSAGE))


mock.close()
done()
