"""Our client against llama-cpp-python's server: 200 pairs in both orders, each verdict weighed by
the log-probabilities of its first token (AlpacaEval 2's protocol), held against probabilities that
llama.cpp computes in this process from the text alone."""
import json
import re
import sys
import time

from harness import TMP, Process, Skip, done, eq, free_port, near, perilune, test

try:
    import llama_cpp
    import numpy as np
    from make_gguf import CONTEXT, write
    missing = None
except ImportError as problem:
    missing = f"llama-cpp-python is not here: {problem}"

PAIRS, IN_PROCESS = 200, 10
server = None


def start():
    global server
    port = free_port()
    write(TMP / "judge.gguf")
    server = Process("llama", [sys.executable, "-m", "llama_cpp.server", "--model", str(TMP / "judge.gguf"),
                               "--model_alias", "judge", "--host", "127.0.0.1", "--port", str(port),
                               "--n_ctx", str(CONTEXT), "--n_threads", "1", "--n_threads_batch", "1",
                               "--logits_all", "true", "--verbose", "false", "--interrupt_requests", "false"],
                     port=port, ready="/v1/models")


def served():
    """The server's access log: how many chat calls it answered, and how."""
    return re.findall(r'"POST /v1/chat/completions HTTP/1\.1" (\d+)', server.output())


def label(more="", pairs=PAIRS, ledger="label"):
    if missing:
        raise Skip(missing)
    if server is None:
        start()
    spec = f"openai:judge@{server.url('/v1')}?template=alpaca_eval_2&max_tokens=1{more}"
    return json.loads(perilune("tests/parity/label.lua", spec, pairs, env={"PL_LEDGER": str(TMP / f"{ledger}.db")}))


first = {}


@test
def pairs_are_labelled():
    began = time.monotonic()
    first.update(label())
    seconds = time.monotonic() - began
    c, calls = first["counts"], first["calls"]
    eq((c["asked"], c["invalid"], c["win"] + c["tie"] + c["loss"]), (PAIRS, 0, PAIRS))
    eq(first["rows"], c["win"] + c["loss"], "rows of training data")
    eq(len(calls), 2 * PAIRS)
    weights = [call["weight"] for call in calls]
    eq([w for w in weights if not (isinstance(w, float) and 0 <= w <= 1)], [], "weights outside [0, 1]")
    eq(len(set(weights)) > PAIRS and max(weights) - min(weights) > 0.1, True, "weights differ")
    wins = sum(weights[2 * i] > weights[2 * i + 1] for i in range(PAIRS))
    losses = sum(weights[2 * i] < weights[2 * i + 1] for i in range(PAIRS))
    eq((c["win"], c["loss"]), (wins, losses), "verdicts from weights")
    return f"{PAIRS} pairs, {2 * PAIRS} calls in {seconds:.1f} s; weights {min(weights):.3f} to {max(weights):.3f}; {c}"


@test
def the_ledger_counts_what_the_server_counts():
    if missing:
        raise Skip(missing)
    eq((len(served()), set(served())), (2 * PAIRS, {"200"}))
    held = first["ledger"]
    eq((held["attempts"], held["answered"], held["possibly_n"]), (2 * PAIRS, 2 * PAIRS, 0))
    eq(first["ledger_at_the_end"], held, "reading the weights back sent nothing")
    return f"{held['attempts']} attempts, {len(served())} lines in the access log"


@test
def a_second_run_sends_nothing():
    before = len(served()) if server else 0
    again = label()
    eq(again, first)
    eq(len(served()), before)


@test
def weights_are_llama_cpps():
    if missing:
        raise Skip(missing)
    llm = llama_cpp.Llama(str(TMP / "judge.gguf"), n_ctx=CONTEXT, logits_all=True, n_threads=1, n_threads_batch=1,
                          verbose=False)
    ids = [llm.tokenize(letter, add_bos=False)[0] for letter in (b"m", b"M")]
    worst = 0
    for call in first["calls"][::2 * PAIRS // IN_PROCESS] + first["calls"][1:4:2]:
        text = "".join(f"{m['role']}: {m['content']}\n" for m in call["messages"]) + "assistant:"
        tokens = llm.tokenize(text.encode(), add_bos=True)
        llm.reset()
        llm.eval(tokens)
        m, other = np.exp(np.asarray(llm.scores[len(tokens) - 1], dtype=np.float64)[ids])
        worst = max(worst, abs(m / (m + other) - call["weight"]))
    near(worst, 0, 1e-4, "largest difference")
    return f"largest difference {worst:.1e}"


@test
def streamed_and_plain_weigh_the_same():
    before = len(served()) if server else 0
    streamed = label("&stream=true", 10, "stream")
    for got, want in zip(streamed["calls"], first["calls"]):
        near(got["weight"], want["weight"], 1e-4, "weight")
    eq((streamed["ledger"]["attempts"], len(served()) - before), (20, 20), "attempts and lines in the access log")


if server:
    server.close()
done()
