"""The official openai client against `perilune serve`: two small models, one of whole words and one
whose characters come in parts. Scores are held against the model's own (scores.lua)."""
import asyncio
import json
import math
import time

import openai

from harness import PERILUNE, TMP, Process, done, eq, near, perilune, raises, test
from typed import typed

perilune("tests/parity/models.lua", TMP / "models")
WORDS, BYTES = TMP / "models/words", TMP / "models/bytes"


def serve(name, directory, *options, env=None):
    return Process(name, [PERILUNE, "serve", str(directory), "port=0", *options], env=env)


words, parts = serve("serve_words", WORDS), serve("serve_bytes", BYTES)
client = openai.OpenAI(base_url=words.url("/v1"), api_key="none", max_retries=0)
other = openai.OpenAI(base_url=parts.url("/v1"), api_key="none", max_retries=0)

ASK = [{"role": "user", "content": "Q: length of: cat fox\nA:"}]
CHAT = {"model": "words", "messages": ASK, "max_tokens": 24, "seed": 3}
PARTS = {**CHAT, "model": "bytes", "max_tokens": 60}
TEXT = {"model": "words", "prompt": "Q: length of: cat fox\nA:", "max_tokens": 12, "seed": 5}


def own_scores(directory, rows):
    """What the model itself says of (text, further tokens)."""
    path = TMP / "rows.json"
    path.write_text(json.dumps([{"text": text, "tokens": tokens} for text, tokens in rows]))
    return json.loads(perilune("tests/parity/scores.lua", directory, path))


def text_of(chunks, index=0):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == index)


@test
def chat():
    r = typed(client.chat.completions.create(**CHAT))
    eq((r.object, r.model, r.choices[0].index, r.choices[0].message.role), ("chat.completion", "words", 0, "assistant"))
    eq(r.choices[0].finish_reason in ("stop", "length"), True, r.choices[0].finish_reason)
    eq(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens)
    eq(r.usage.completion_tokens <= 24, True, str(r.usage))
    again = client.chat.completions.create(**CHAT)
    eq(again.choices[0].message.content, r.choices[0].message.content, "same seed")
    eq(again.id != r.id, True, "ids differ")
    texts = {client.chat.completions.create(**{**CHAT, "seed": i}).choices[0].message.content for i in range(8)}
    eq(len(texts) > 4, True, f"{len(texts)} different texts of 8 seeds")


@test
def greedy():
    replies = [client.chat.completions.create(**{**CHAT, "seed": i}, temperature=0) for i in range(4)]
    eq(len({r.choices[0].message.content for r in replies}), 1)


@test
def streams_are_the_whole_replies():
    seen = 0
    for c, ask in ((client, CHAT), (other, PARTS)):
        for seed in range(12):
            call = {**ask, "seed": seed}
            plain = c.chat.completions.create(**call)
            chunks = [typed(x) for x in c.chat.completions.create(**call, stream=True)]
            eq(text_of(chunks), plain.choices[0].message.content, f"{ask['model']}, seed {seed}")
            eq([x.choices[0].finish_reason for x in chunks][-1], plain.choices[0].finish_reason)
            eq(len({x.id for x in chunks}), 1, "one id a stream")
            seen += len(chunks)
    return f"{seen} chunks"


@test
def stream_usage():
    plain = client.chat.completions.create(**CHAT)
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    eq((chunks[-1].choices, chunks[-1].usage), ([], plain.usage))
    eq([c.usage for c in chunks[:-1]], [None] * (len(chunks) - 1))
    eq([c.usage for c in client.chat.completions.create(**CHAT, stream=True) if c.usage], [])


@test
def stream_helper():
    # its final reply must not have ended at the limit, so a text ends it
    call = {**CHAT, "stop": [client.chat.completions.create(**CHAT).choices[0].message.content.split()[4]]}
    with client.chat.completions.stream(**call, logprobs=True, top_logprobs=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    eq({"content.delta", "content.done", "logprobs.content.delta"} <= kinds, True, str(kinds))
    eq(final.choices[0].message.content, client.chat.completions.create(**call).choices[0].message.content)
    eq(len(final.choices[0].logprobs.content) > 0, True)


@test
def logprobs():
    for c, ask in ((client, CHAT), (other, PARTS)):
        vocabulary = json.loads((TMP / "models" / ask["model"] / "config.json").read_text())["vocab_size"]
        most = min(20, vocabulary)
        r = typed(c.chat.completions.create(**ask, logprobs=True, top_logprobs=most))
        content = r.choices[0].logprobs.content
        eq(b"".join(bytes(t.bytes) for t in content).decode(errors="replace"), r.choices[0].message.content, "bytes")
        for t in content:
            tops = [x.logprob for x in t.top_logprobs]
            eq((len(tops), tops), (most, sorted(tops, reverse=True)))
            mass = sum(map(math.exp, tops))
            eq(t.logprob <= 0 and most / vocabulary - 1e-6 <= mass <= 1 + 1e-5, True, f"mass {mass}")
            here = [x for x in t.top_logprobs if x.bytes == t.bytes]
            if here:
                near(here[0].logprob, t.logprob, 1e-6, "in the list and alone")
            else:
                eq(t.logprob <= tops[-1] + 1e-6, True, "not among the likeliest")
        streamed = c.chat.completions.create(**ask, logprobs=True, top_logprobs=most, stream=True)
        again = [t for x in streamed if x.choices[0].logprobs for t in x.choices[0].logprobs.content]
        eq([(t.token, t.logprob) for t in again], [(t.token, t.logprob) for t in content], "streamed")


@test
def chat_logprobs_are_the_models_own():
    got, rows = [], []
    for seed in range(6):
        r = client.chat.completions.create(**{**CHAT, "seed": seed}, logprobs=True)
        content = r.choices[0].logprobs.content
        got.append([t.logprob for t in content])
        rows.append((ASK[0]["content"], [t.token for t in content]))
    worst = 0
    for mine, own in zip(got, own_scores(WORDS, rows)):
        worst = max([worst] + [abs(a - b) for a, b in zip(mine, own["logprobs"][-len(mine):] if mine else [])])
    eq(sum(map(len, got)) > 50, True, "enough tokens")
    near(worst, 0, 1e-4, "largest difference")
    return f"{sum(map(len, got))} tokens, largest difference {worst:.1e}"


@test
def n():
    r = typed(client.chat.completions.create(**CHAT, n=4))
    eq([c.index for c in r.choices], [0, 1, 2, 3])
    eq(len({c.message.content for c in r.choices}) > 1, True)
    chunks = list(client.chat.completions.create(**CHAT, n=4, stream=True))
    for c in r.choices:
        eq(text_of(chunks, c.index), c.message.content, f"choice {c.index} streamed")


@test
def stop():
    for c, ask in ((client, CHAT), (other, PARTS)):
        text = c.chat.completions.create(**ask).choices[0].message.content
        if ask is CHAT:
            word = text.split()[2]
        else:                                      # a text that begins inside one token and ends in another
            word = next(text[k:k + 3] for k in range(4, len(text) - 3) if "\ufffd" not in text[k:k + 3])
        r = c.chat.completions.create(**ask, stop=[word, "zebra"])
        eq((r.choices[0].message.content, r.choices[0].finish_reason), (text[:text.index(word)], "stop"))
        chunks = list(c.chat.completions.create(**ask, stop=[word, "zebra"], stream=True))
        eq(text_of(chunks), text[:text.index(word)], "streamed")


@test
def max_tokens():
    for name in ("max_tokens", "max_completion_tokens"):
        call = {k: v for k, v in CHAT.items() if k != "max_tokens"}
        r = client.chat.completions.create(**{**call, "seed": 1}, **{name: 3})
        eq((r.choices[0].finish_reason, r.usage.completion_tokens), ("length", 3), name)


@test
def completions():
    r = typed(client.completions.create(**TEXT, logprobs=5))
    p = r.choices[0].logprobs
    eq((r.object, "".join(p.tokens)), ("text_completion", r.choices[0].text))
    eq([r.choices[0].text[o:o + len(t)] for o, t in zip(p.text_offset, p.tokens)], p.tokens)
    for token, logprob, top in zip(p.tokens, p.token_logprobs, p.top_logprobs):
        eq(5 <= len(top) <= 6 and sum(map(math.exp, top.values())) <= 1 + 1e-5, True)
        near(top[token], logprob, 1e-6)
    chunks = list(client.completions.create(**TEXT, stream=True))
    eq("".join(c.choices[0].text for c in chunks if c.choices), r.choices[0].text)
    several = client.completions.create(**{**TEXT, "prompt": [TEXT["prompt"], "Q: reverse cat\nA:"]}, n=2)
    eq([c.index for c in several.choices], [0, 1, 2, 3])


@test
def echo_scores_the_prompt():
    worst, texts = 0, ["Q: length of: cat fox\nA: 2", "the red blue green cat."]
    for c, directory in ((client, WORDS), (other, BYTES)):
        extra = ["caf\u00e9 \U0001f980 ok"] if directory is BYTES else []
        name = directory.name
        for text, own in zip(texts + extra, own_scores(directory, [(t, []) for t in texts + extra])):
            r = c.completions.create(model=name, prompt=text, max_tokens=0, echo=True, logprobs=1)
            eq(r.choices[0].text, text)
            p = r.choices[0].logprobs
            eq((p.token_logprobs[0], len(p.tokens)), (None, own["count"]))
            for a, b in zip(p.token_logprobs[1:], own["logprobs"]):
                worst = max(worst, abs(a - b))
    near(worst, 0, 1e-4, "largest difference from the model's own score")
    r = client.completions.create(**TEXT, echo=True, logprobs=1)
    eq("".join(r.choices[0].logprobs.tokens), r.choices[0].text)
    eq(r.choices[0].text, TEXT["prompt"] + client.completions.create(**TEXT).choices[0].text, "prompt and answer")
    return f"largest difference {worst:.1e}"


@test
def models():
    eq([typed(m).id for m in client.models.list()], ["words"])
    eq(typed(client.models.retrieve("words")).id, "words")
    raises(openai.NotFoundError, lambda: client.models.retrieve("nothing"))


@test
def errors():
    def chat_with(**more):
        return lambda: client.chat.completions.create(**{**CHAT, **more})
    for more in ({"temperature": 9}, {"n": 0}, {"top_p": -1}, {"messages": []}, {"max_tokens": 0}, {"top_logprobs": 3},
                 {"messages": [{"role": "king", "content": "x"}]}, {"stop": [""]},
                 {"logprobs": True, "top_logprobs": 21},
                 {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"seed": "x"},
                 {"messages": [{"role": "user", "content": "cat " * 400}]}):
        problem = raises(openai.BadRequestError, chat_with(**more))
        eq((problem.type, bool(problem.body["message"])), ("invalid_request_error", True), str(more))
        eq(problem.param is not None, True, f"{more}: names no parameter")
    problem = raises(openai.NotFoundError, chat_with(model="other"))
    eq((problem.code, problem.param), ("model_not_found", "model"))
    astray = openai.OpenAI(base_url=words.url("/v2"), api_key="none", max_retries=0)
    raises(openai.NotFoundError, lambda: astray.chat.completions.create(**CHAT))
    raises(openai.BadRequestError, lambda: list(client.chat.completions.create(**CHAT, temperature=9, stream=True)))
    eq(client.chat.completions.create(**CHAT).choices[0].message.content != "", True, "and it still answers")


@test
def token():
    with serve("serve_token", WORDS, "token_env=PARITY_TOKEN", env={"PARITY_TOKEN": "right-token"}) as guarded:
        good = openai.OpenAI(base_url=guarded.url("/v1"), api_key="right-token", max_retries=0)
        wrong = openai.OpenAI(base_url=guarded.url("/v1"), api_key="wrong-token", max_retries=0)
        good.chat.completions.create(**CHAT)
        for call in (lambda: wrong.chat.completions.create(**CHAT), lambda: wrong.models.list()):
            raises(openai.AuthenticationError, call)
        eq("right-token" in guarded.output(), False, "the token in the output")


def at_once(server, call, count):
    async def one(c, i):
        stream = await c.chat.completions.create(**{**call, "seed": i}, stream=True)
        return text_of([x async for x in stream])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=server.url("/v1"), api_key="none", max_retries=0) as c:
            return await asyncio.gather(*(one(c, i) for i in range(count)))
    return asyncio.run(all_of_them())


@test
def parallel_streams():
    for server, c, call in ((words, client, CHAT), (parts, other, PARTS)):
        call = {**call, "max_tokens": 120}
        began = time.monotonic()
        texts = at_once(server, call, 32)
        seconds = time.monotonic() - began
        for i in range(32):
            eq(texts[i], c.chat.completions.create(**{**call, "seed": i}).choices[0].message.content, f"stream {i}")
    return f"32 streams, {sum(map(len, texts))} characters in {seconds:.2f} s; each as when alone"


@test
def a_client_that_leaves():
    call = {**PARTS, "max_tokens": 200}
    for i in range(8):
        stream = other.chat.completions.create(**{**call, "seed": 50 + i}, stream=True)
        next(iter(stream))
        stream.close()
    eq(text_of(list(other.chat.completions.create(**PARTS, stream=True))),
       other.chat.completions.create(**PARTS).choices[0].message.content)


words.close()
parts.close()
done()
