/* Files of the mock as batches need them: an upload in parts, the file's object, its content. */
#include "mock.h" /* first: it asks for the GNU names */

void files_free(mock *m) {
  for (size_t i = 0; i < m->file_n; i++) {
    free(m->files[i].name.data);
    free(m->files[i].data.data);
  }
  free(m->files);
}

stored *file_add(mock *m, const char *purpose) {
  m->files = realloc(m->files, (m->file_n + 1) * sizeof *m->files);
  if (!m->files) exit(1);
  stored *f = &m->files[m->file_n++];
  *f = (stored){0};
  snprintf(f->id, sizeof f->id, "file-%zu", m->file_n);
  snprintf(f->purpose, sizeof f->purpose, "%s", purpose);
  buf_need(&f->data, 64);
  return f;
}

stored *file_find(mock *m, span id) {
  for (size_t i = 0; i < m->file_n; i++) {
    if (span_is(id, m->files[i].id)) return &m->files[i];
  }
  return NULL;
}

static void file_object(const stored *f, buf *out) {
  buf_fmt(out, "{\"id\":\"%s\",\"object\":\"file\",\"bytes\":%zu,\"created_at\":%d,\"filename\":",
          f->id, f->data.len, CREATED);
  buf_json(out, f->name.len ? f->name.data : "batch.jsonl", f->name.len ? f->name.len : 11);
  buf_fmt(out, ",\"purpose\":\"%s\",\"status\":\"processed\"}", f->purpose);
}

/* The value of key="value" in a part's head. */
static span quoted(span head, const char *key) {
  span hit = span_find(head, key);
  if (!hit.at) return hit;
  span value = {hit.at + strlen(key), hit.len - strlen(key)};
  span end = span_find(value, "\"");
  return end.at ? (span){value.at, value.len - end.len} : (span){NULL, 0};
}

/* Takes the first part off `rest`; false: no further one. */
static bool next_part(span *rest, const char *mark, span *head, span *data) {
  span from = span_find(*rest, mark);
  if (!from.at || from.len < strlen(mark) + 2) return false;
  from = (span){from.at + strlen(mark), from.len - strlen(mark)};
  span gap = span_find(from, "\r\n\r\n");
  span end = span_find(gap, mark);
  if (!end.at) return false;
  *head = (span){from.at, from.len - gap.len};
  *data = (span){gap.at + 4, gap.len - end.len};
  if (data->len < 6) return false;
  data->len -= 6; /* the CRLF CRLF before it, the CRLF of the next mark */
  *rest = end;
  return true;
}

static void file_upload(mock *m, const request *q, reply *r) {
  char mark[100];
  span type = http_header(q, "content-type"), boundary = span_find(type, "boundary=");
  if (!span_starts(type, "multipart/form-data") || !boundary.at || boundary.len > 80) {
    error_reply(m, r, 400, "A file is sent as multipart/form-data with a boundary.");
    return;
  }
  boundary = (span){boundary.at + 9, boundary.len - 9};
  if (boundary.len > 2 && boundary.at[0] == '"') {
    boundary = (span){boundary.at + 1, boundary.len - 2};
  }
  snprintf(mark, sizeof mark, "--%.*s", (int)boundary.len, boundary.at);
  span rest = q->body, head, data, file = {0}, name = {0}, purpose = {0};
  while (next_part(&rest, mark, &head, &data)) {
    span field = quoted(head, " name=\"");
    if (span_is(field, "purpose")) {
      purpose = data;
    }
    if (span_is(field, "file")) {
      file = data;
      name = quoted(head, "filename=\"");
    }
  }
  if (!file.at || !span_is(purpose, "batch")) {
    error_reply(m, r, 400, "A file needs the parts 'file' and 'purpose' = batch.");
    return;
  }
  stored *f = file_add(m, "batch");
  buf_put(&f->name, name.at, name.len);
  buf_put(&f->data, file.at, file.len);
  file_object(f, r->body);
}

void files_route(mock *m, const request *q, span rest, reply *r) {
  bool get = span_is(q->method, "GET");
  if (!get && rest.len == 0) {
    file_upload(m, q, r);
    return;
  }
  span tail = span_find(rest, "/content");
  span id = rest.len ? (span){rest.at + 1, rest.len - 1 - tail.len} : rest;
  const stored *f = file_find(m, id);
  if (!get || !f) {
    error_reply(m, r, 404, "No such File object.");
  } else if (tail.at) {
    r->type = "application/octet-stream";
    buf_put(r->body, f->data.data, f->data.len);
  } else {
    file_object(f, r->body);
  }
}
