"""The official openai client as load: load.py PORT BODIES STREAMS REQUESTS sends the bodies (one
JSON object a line, of POST /v1/completions) as streams, STREAMS at a time, and prints the line that
tests/net/load.c prints: {requests, failed, tokens, seconds, tokens_per_s, client_cpu}."""
import asyncio
import json
import sys
import time

import openai

port, bodies, streams, requests = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
lines = [json.loads(line) for line in open(bodies, encoding="utf-8") if line.strip()]


async def one(client, model, body):
    body = {k: v for k, v in body.items() if k != "stream"}
    tokens = 0
    async for chunk in await client.completions.create(model=model, stream=True, **body):
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    return tokens


async def main():
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)
    model = (await client.models.list()).data[0].id
    gate = asyncio.Semaphore(streams)

    async def gated(body):
        async with gate:
            return await one(client, model, body)

    began, cpu = time.monotonic(), time.process_time()
    results = await asyncio.gather(*(gated(lines[i % len(lines)]) for i in range(requests)), return_exceptions=True)
    seconds = time.monotonic() - began
    cpu = time.process_time() - cpu
    failed = sum(isinstance(r, Exception) for r in results)
    tokens = sum(r for r in results if not isinstance(r, Exception))
    print(json.dumps({"requests": requests, "failed": failed, "tokens": tokens, "seconds": round(seconds, 3),
                      "tokens_per_s": round(tokens / seconds, 1), "client_cpu": round(cpu / seconds, 4)}))


asyncio.run(main())
