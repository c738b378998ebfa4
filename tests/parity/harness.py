"""What the parity tests share: results as "ok NAME", "not ok NAME", "skip NAME why"; child
processes that end with the test; loopback ports. Nothing here knows a service."""
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PERILUNE = os.environ.get("PL_BIN", str(ROOT / "perilune"))
MOCK = os.environ.get("PL_MOCK", str(ROOT / "build/tests/mock"))
TMP = pathlib.Path(os.environ["PL_PARITY_TMP"])

_failed = 0


class Skip(Exception):
    """Why a test cannot be run here."""


def test(f):
    """Runs f at once as a test; what it returns is shown after its name."""
    global _failed
    name = f.__name__
    only = os.environ.get("PL_TEST_ONLY")
    if only and only not in name:
        return f
    try:
        said = f()
        print(f"ok {name}" + (f": {said}" if said else ""), flush=True)
    except Skip as why:
        print(f"skip {name} {why}", flush=True)
    except Exception:
        _failed += 1
        traceback.print_exc(file=sys.stdout)
        print(f"not ok {name}", flush=True)
    return f


def done():
    sys.exit(1 if _failed else 0)


def eq(got, want, what=""):
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, wanted {want!r}" if what else f"got {got!r}, wanted {want!r}")


def near(got, want, within, what=""):
    if not abs(got - want) <= within:
        raise AssertionError(f"{what}: got {got!r}, wanted {want!r} within {within}")


def raises(kind, f, **kwargs):
    """f(**kwargs) must raise exactly this class; gives the exception."""
    try:
        f(**kwargs)
    except Exception as problem:
        if type(problem) is not kind:
            raise AssertionError(f"wanted {kind.__name__}, got {type(problem).__name__}: {problem}") from problem
        return problem
    raise AssertionError(f"wanted {kind.__name__}, and nothing was raised")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Process:
    """A server on loopback with its output in a file; `with` ends it."""

    def __init__(self, name, command, port=None, ready="/health", seconds=60, env=None):
        self.path = TMP / f"{name}.log"
        self.name = name
        self.log = open(self.path, "wb")
        self.child = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                      cwd=ROOT, env={**os.environ, **(env or {})})
        self.port = port
        try:
            self._wait(ready, time.monotonic() + seconds)
        except BaseException:
            self.close()
            raise

    def _wait(self, ready, until):
        while time.monotonic() < until:
            if self.child.poll() is not None:
                raise AssertionError(f"{self.name} ended with status {self.child.returncode}:\n{self.output()[-4000:]}")
            if not self.port:
                self.port = self._announced()
            if self.port:
                try:
                    urllib.request.urlopen(self.url(ready), timeout=2).close()
                    return
                except OSError:
                    pass
            time.sleep(0.03)
        raise AssertionError(f"{self.name} does not answer:\n{self.output()[-4000:]}")

    # A server that chose its port says so: "port N", or an address that ends in it.
    def _announced(self):
        found = re.search(r"port (\d+)|127\.0\.0\.1:(\d+)", self.output())
        return int(found.group(1) or found.group(2)) if found else None

    def url(self, path=""):
        return f"http://127.0.0.1:{self.port}{path}"

    def output(self):
        return self.path.read_text(errors="replace")

    def get(self, path):
        with urllib.request.urlopen(self.url(path), timeout=10) as r:
            return json.load(r)

    def post(self, path, value):
        body, headers = json.dumps(value).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url(path), body, headers)
        with urllib.request.urlopen(request, timeout=10) as r:
            return json.load(r)

    def close(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def perilune(*args, env=None, seconds=120):
    """Runs ./perilune with a script; gives what it printed. A failure shows both outputs."""
    r = subprocess.run([PERILUNE, *map(str, args)], cwd=ROOT, env={**os.environ, **(env or {})}, timeout=seconds,
                       stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if r.returncode != 0:
        shown = " ".join(map(str, args))
        raise AssertionError(f"perilune {shown}: status {r.returncode}\n{r.stdout[-2000:]}{r.stderr[-4000:]}")
    return r.stdout
