"""One workload in llama.cpp, through llama-cpp-python's plain bindings; the last line of output
is one JSON object.

    python llama_peer.py gen|prefill MODEL.gguf BATCH LENGTH SECONDS [PROCESSES]

gen: BATCH sequences get prompts of 32 tokens, then 128 tokens each; tokens are not drawn, which is
in the peer's favour. Each of the PROCESSES has its share of the sequences and OMP_NUM_THREADS
threads, and begins each round with the others; the rates are added."""
import json
import multiprocessing
import os
import resource
import sys
import time

import llama_cpp as L

PROMPT, NEW = 32, 128


class Engine:
    def __init__(self, path, batch, threads, tokens):
        L.llama_log_set(quiet, None)
        L.llama_backend_init()
        self.model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
        p = L.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = batch * (PROMPT + NEW + 8) + tokens, max(512, tokens), 512, batch
        p.n_threads = p.n_threads_batch = threads
        if hasattr(p, "kv_unified"):
            p.kv_unified = False
        self.context = L.llama_init_from_model(self.model, p)
        if not self.model or not self.context:
            raise SystemExit("llama.cpp could not open " + path)
        self.batch = L.llama_batch_init(max(512, tokens, batch * PROMPT), 0, 1)

    def clear(self):
        L.llama_memory_clear(L.llama_get_memory(self.context), True)

    def decode(self, entries):
        """entries: (token, place, sequence, logits wanted)"""
        b = self.batch
        b.n_tokens = len(entries)
        for i, (token, place, sequence, wanted) in enumerate(entries):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, place, 1, wanted
            b.seq_id[i][0] = sequence
        if L.llama_decode(self.context, b) != 0:
            raise SystemExit("llama_decode failed")


@L.llama_log_callback
def quiet(level, text, data):
    pass


def gen(engine, batch, length):
    engine.clear()
    for s in range(batch):
        engine.decode([(1 + (s * 31 + i * 17) % 30000, i, s, i == PROMPT - 1) for i in range(PROMPT)])
    began = time.perf_counter()
    for n in range(NEW):
        engine.decode([(1 + (s + n) % 30000, PROMPT + n, s, True) for s in range(batch)])
        L.llama_get_logits(engine.context)
    return time.perf_counter() - began


def prefill(engine, batch, length):
    engine.clear()
    began = time.perf_counter()
    engine.decode([(1 + i * 17 % 30000, i, 0, i == length - 1) for i in range(length)])
    L.llama_get_logits(engine.context)
    return time.perf_counter() - began


def work(mode, path, batch, length, seconds, threads, together, results):
    engine = Engine(path, batch, threads, length if mode == "prefill" else 0)
    run = dict(gen=gen, prefill=prefill)[mode]
    times = []
    run(engine, batch, length)
    together.wait()
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 3:
        times.append(run(engine, batch, length))
    times.sort()
    amount = batch * NEW if mode == "gen" else length
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put((amount / times[len(times) // 2], amount / times[0], len(times), rss))


def main():
    mode, path, batch, length, seconds = sys.argv[1:6]
    processes = int(sys.argv[6]) if len(sys.argv) > 6 else 1
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    together, results = multiprocessing.Barrier(processes), multiprocessing.Queue()
    each = (mode, path, int(batch) // processes, int(length), float(seconds), threads, together, results)
    children = [multiprocessing.Process(target=work, args=each) for _ in range(processes)]
    for child in children:
        child.start()
    got = [results.get(timeout=600) for _ in children]
    for child in children:
        child.join()
    print(json.dumps(dict(
        peer="llama.cpp", version=L.__version__, rate=sum(g[0] for g in got), best_rate=sum(g[1] for g in got), unit="tokens/s",
        rounds=min(g[2] for g in got), rss=sum(g[3] for g in got))))


main()
