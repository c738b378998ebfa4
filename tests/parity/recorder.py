"""A server that notes each request and hands it on to another, whose reply it returns: what a
client sends, without a change to what it gets."""
import email.parser
import http.client
import http.server
import json
import threading


class Request:
    def __init__(self, method, path, headers, body):
        self.method, self.path, self.body = method, path, body
        self.headers = {name.lower(): value for name, value in headers}

    def json(self):
        return json.loads(self.body)

    def form(self):
        """The parts of a multipart form: name -> (headers, bytes)."""
        head = b"Content-Type: " + self.headers["content-type"].encode() + b"\r\n\r\n"
        parts = {}
        for part in email.parser.BytesParser().parsebytes(head + self.body).get_payload():
            parts[part.get_param("name", header="content-disposition")] = (part, part.get_payload(decode=True))
        return parts


class Recorder:
    def __init__(self, port):
        self.requests, target = [], port

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def hand_on(handler):
                length = int(handler.headers.get("content-length") or 0)
                body = handler.rfile.read(length)
                self.requests.append(Request(handler.command, handler.path, handler.headers.items(), body))
                onward = http.client.HTTPConnection("127.0.0.1", target, timeout=30)
                own = ("host", "accept-encoding", "connection")
                keep = {k: v for k, v in handler.headers.items() if k.lower() not in own}
                onward.request(handler.command, handler.path, body, keep)
                reply = onward.getresponse()
                content = reply.read()
                handler.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                        handler.send_header(name, value)
                handler.send_header("content-length", str(len(content)))
                handler.end_headers()
                handler.wfile.write(content)
                onward.close()

            do_GET = do_POST = hand_on

            def log_message(handler, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path=""):
        return f"http://127.0.0.1:{self.port}{path}"

    def take(self):
        """The requests since the last take."""
        taken, self.requests[:] = self.requests[:], []
        return taken

    def close(self):
        self.server.shutdown()
        self.server.server_close()
