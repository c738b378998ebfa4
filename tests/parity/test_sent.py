"""What our client sends and what the official ones send for the same call, recorded on the way to
the mock: the same path, the same headers as far as they mean something, the same body. Our bodies
are also read by the parameter types that the official packages declare."""
import json
import typing

import anthropic
import openai
import pydantic
from anthropic.types import message_create_params
from openai.types.chat import completion_create_params

from harness import MOCK, TMP, Process, done, eq, perilune, test
from recorder import Recorder

mock = Process("mock_sent", [MOCK, "--latency-ms", "1", "--batch-polls", "1"])
between = Recorder(mock.port)
KEYS = {"OPENAI_API_KEY": "sk-parity-openai", "OPENAI_ORG_ID": "org-parity", "OPENAI_PROJECT_ID": "proj-parity",
        "OPENAI_BASE_URL": between.url("/v1"), "ANTHROPIC_API_KEY": "sk-parity-anthropic",
        "ANTHROPIC_BASE_URL": between.url()}
theirs_o = openai.OpenAI(base_url=KEYS["OPENAI_BASE_URL"], api_key=KEYS["OPENAI_API_KEY"],
                         organization=KEYS["OPENAI_ORG_ID"], project=KEYS["OPENAI_PROJECT_ID"])
theirs_a = anthropic.Anthropic(base_url=KEYS["ANTHROPIC_BASE_URL"], api_key=KEYS["ANTHROPIC_API_KEY"])
runs = 0


def prompt(i=1):
    return f'Tell of moon {i}: \u00e9, \U0001f980, "quotes" and\ntwo lines.'


def ours(spec, task="demonstrate", n=1):
    """The requests of our client, with a ledger of its own, in the order of the prompts."""
    global runs
    runs += 1
    perilune("tests/parity/send.lua", spec, task, n, env={**KEYS, "PL_LEDGER": str(TMP / f"sent-{runs}.db")})
    return between.take()


def one(list_):
    eq(len(list_), 1, "requests")
    return list_[0]


def theirs(call):
    result = call()
    if isinstance(result, (openai.Stream, anthropic.Stream)):
        for _ in result:
            pass
    return one(between.take())


def same(mine, other, headers):
    eq((mine.method, mine.path), (other.method, other.path))
    for name in headers:
        eq(mine.headers.get(name), other.headers.get(name), name)
    eq(mine.json(), other.json(), "body")
    eq(mine.headers.get("content-length"), str(len(mine.body)), "content-length")
    eq("transfer-encoding" in mine.headers or "expect" in mine.headers, False, "chunked or Expect")


def known(body, declared):
    """All fields are ones that the package declares, with values of the declared types."""
    names = typing.get_type_hints(declared)
    eq([name for name in body if name not in names], [], "unknown fields")
    pydantic.TypeAdapter(declared).validate_python(body)


OPENAI = ("content-type", "authorization", "openai-organization", "openai-project")


def openai_same(spec, task, call):
    mine = one(ours(spec, task))
    streams = mine.json().get("stream")
    known(mine.json(), completion_create_params.CompletionCreateParamsStreaming if streams
          else completion_create_params.CompletionCreateParamsNonStreaming)
    same(mine, theirs(lambda: theirs_o.chat.completions.create(**call(mine.json()["messages"]))), OPENAI)


@test
def openai_plain():
    openai_same("openai:mock", "demonstrate", lambda _: {
        "model": "mock", "messages": [{"role": "user", "content": prompt()}], "max_tokens": 32})


@test
def openai_sampling():
    openai_same("openai:mock?temperature=0.5&top_p=0.9&seed=7&system=Be brief.&max_tokens=9", "demonstrate", lambda _: {
        "model": "mock", "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt()}],
        "temperature": 0.5, "top_p": 0.9, "seed": 7})


@test
def openai_stream():
    openai_same("openai:mock?stream=true", "demonstrate", lambda _: {
        "model": "mock", "messages": [{"role": "user", "content": prompt()}], "max_tokens": 32, "stream": True,
        "stream_options": {"include_usage": True}})


@test
def openai_log_probabilities():
    openai_same("openai:mock?template=alpaca_eval_2", "compare", lambda messages: {
        "model": "mock", "messages": messages, "max_tokens": 1, "temperature": 1, "logprobs": True, "top_logprobs": 5})


@test
def openai_schema():
    mine = one(ours("openai:mock?schema=true", "compare")).json()
    known(mine, completion_create_params.CompletionCreateParamsNonStreaming)
    eq(mine["response_format"]["type"], "json_schema")
    form = mine["response_format"]["json_schema"]
    eq((form["strict"], form["schema"]["type"]), (True, "object"))
    sent = theirs(lambda: theirs_o.chat.completions.create(**mine))
    eq(sent.json(), mine, "body")


@test
def openai_batch():
    def ask(i):
        return {"model": "mock", "messages": [{"role": "user", "content": prompt(i)}], "max_tokens": 32}
    mine = ours("openai:mock?batch=true", n=3)
    files = [r for r in mine if (r.method, r.path) == ("POST", "/v1/files")]
    made = [r for r in mine if (r.method, r.path) == ("POST", "/v1/batches")]
    form = one(files).form()
    rows = [json.loads(line) for line in form["file"][1].splitlines()]
    eq(([r["body"] for r in rows], {(r["method"], r["url"]) for r in rows}, len({r["custom_id"] for r in rows})),
       ([ask(i) for i in (1, 2, 3)], {("POST", "/v1/chat/completions")}, 3))
    theirs_o.files.create(file=("in.jsonl", form["file"][1]), purpose="batch")
    other = one(between.take())
    eq(other.path, "/v1/files")
    eq((form["purpose"][1], form["file"][1]), (other.form()["purpose"][1], other.form()["file"][1]), "form")
    eq(bool(form["file"][0].get_filename()), True, "a file has a name")
    body = one(made).json()
    same(made[0], theirs(lambda: theirs_o.batches.create(**body)), OPENAI)
    eq((body["endpoint"], body["completion_window"]), ("/v1/chat/completions", "24h"))


# The key goes as x-api-key by default, which the service takes beside what the newest package sends.
ANTHROPIC = ("content-type", "authorization", "x-api-key", "anthropic-version")
NEWEST = "auth=bearer&version=" + anthropic._constants.ANTHROPIC_API_VERSION


def anthropic_same(spec, task, call):
    mine = one(ours(spec, task))
    streams = mine.json().get("stream")
    known(mine.json(), message_create_params.MessageCreateParamsStreaming if streams
          else message_create_params.MessageCreateParamsNonStreaming)
    same(mine, theirs(lambda: theirs_a.messages.create(**call(mine.json()))), ANTHROPIC)


@test
def anthropic_plain():
    anthropic_same(f"anthropic:mock?{NEWEST}", "demonstrate", lambda _: {
        "model": "mock", "messages": [{"role": "user", "content": prompt()}], "max_tokens": 32})


@test
def anthropic_default_headers():
    headers = one(ours("anthropic:mock")).headers
    eq((headers.get("x-api-key"), headers.get("anthropic-version"), "authorization" in headers),
       (KEYS["ANTHROPIC_API_KEY"], "2023-06-01", False))


@test
def anthropic_system():
    anthropic_same(f"anthropic:mock?{NEWEST}&system=Be brief.&max_tokens=9", "demonstrate", lambda _: {
        "model": "mock", "messages": [{"role": "user", "content": prompt()}], "system": "Be brief.", "max_tokens": 9})


@test
def anthropic_sampling():
    """The newest package has no names for these, because the newest models refuse them."""
    mine = one(ours(f"anthropic:mock?{NEWEST}&temperature=0.5&top_p=0.9"))
    same(mine, theirs(lambda: theirs_a.messages.create(
        model="mock", messages=[{"role": "user", "content": prompt()}], max_tokens=32,
        extra_body={"temperature": 0.5, "top_p": 0.9})), ANTHROPIC)


@test
def anthropic_stream():
    anthropic_same(f"anthropic:mock?{NEWEST}&stream=true", "demonstrate", lambda _: {
        "model": "mock", "messages": [{"role": "user", "content": prompt()}], "max_tokens": 32, "stream": True})


@test
def anthropic_judge():
    anthropic_same(f"anthropic:mock?{NEWEST}", "compare", lambda body: {
        "model": "mock", "max_tokens": 1024, "system": body["system"],
        "messages": [{"role": "user", "content": body["messages"][0]["content"]}]})


@test
def anthropic_schema():
    anthropic_same(f"anthropic:mock?{NEWEST}&schema=true", "compare", lambda body: {
        "model": "mock", "max_tokens": 1024, "system": body["system"], "messages": body["messages"],
        "output_config": {"format": {"type": "json_schema", "schema": body["output_config"]["format"]["schema"]}}})


@test
def anthropic_batch():
    mine = ours(f"anthropic:mock?{NEWEST}&batch=true", n=3)
    made = one([r for r in mine if r.method == "POST"])
    rows = made.json()["requests"]
    eq([r["params"] for r in rows], [{
        "model": "mock", "messages": [{"role": "user", "content": prompt(i)}], "max_tokens": 32} for i in (1, 2, 3)])
    same(made, theirs(lambda: theirs_a.messages.batches.create(requests=rows)), ANTHROPIC)
    asked = [r.path for r in mine if r.method == "GET" and "?" not in r.path]
    name = asked[-1].split("/")[-2]                        # the results come last
    batch = theirs_a.messages.batches.retrieve(name)
    eq((one(between.take()).path in asked, batch.results_url[-len(asked[-1]):]), (True, asked[-1]), str(asked))


between.close()
mock.close()
done()
