#!/usr/bin/env bash
# Certificates: a reply only from who proves to be the named host; otherwise nothing is sent.
set -u
bin=${PL_BIN:-./perilune}
tmp=$(mktemp -d) || exit 2
server=
stop() {
  [ -z "$server" ] || { kill "$server"; wait "$server"; } 2>/dev/null
  server=
}
trap 'stop; rm -rf "$tmp"' EXIT

names=(good_certificate no_authority self_signed expired wrong_host old_protocol authority_missing plain_server)
if ! command -v openssl >/dev/null 2>&1; then
  for name in "${names[@]}"; do
    echo "skip $name no openssl command"
  done
  exit 0
fi

# ---- an authority of our own, and certificates ----
cd "$tmp" || exit 2
cat >ca.conf <<'CONF'
[ca]
default_ca = own
[own]
database = index
new_certs_dir = .
serial = serial
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
CONF
: >index
echo 01 >serial
new_key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
# certificate NAME HOST FROM TO
certificate() {
  # shellcheck disable=SC2086
  openssl req $new_key -keyout "$1.key" -out "$1.csr" -subj "/CN=$2" -addext "subjectAltName=DNS:$2" &&
    openssl ca -batch -config ca.conf -cert ca.pem -keyfile ca.key -in "$1.csr" -out "$1.pem" -notext \
      -startdate "$3" -enddate "$4"
}
# shellcheck disable=SC2086
if ! {
  openssl req -x509 $new_key -keyout ca.key -out ca.pem -days 30 -subj "/CN=Test Authority" &&
    certificate good localhost 20200101000000Z 20491231000000Z &&
    certificate expired localhost 20200101000000Z 20210101000000Z &&
    certificate other other.example 20200101000000Z 20491231000000Z &&
    openssl req -x509 $new_key -keyout self.key -out self.pem -days 30 -subj /CN=localhost \
      -addext subjectAltName=DNS:localhost
} >log 2>&1; then
  sed 's/^/    /' log
  echo "not ok certificates are made"
  exit 1
fi
cd - >/dev/null || exit 2

cat >"$tmp/ask.lua" <<'LUA'
local net = require("perilune.core").net
assert(net.secret "PL_TEST_KEY")
local c = net.client()
c:send { id = 1, url = arg[1], connect_s = tonumber(arg[2]), total_s = 5, secret_env = "PL_TEST_KEY", secret_header = "X-Api-Key: " }
c:poll(6)
local r = c:next()
print(r.failure or "fine", r.status or "-", r.sent and "sent" or "unsent", r.message or "")
LUA

# serve CERTIFICATE [OPTION...]: sets port
serve() {
  local name=$1
  shift
  stop
  openssl s_server -accept 127.0.0.1:0 -cert "$tmp/$name.pem" -key "$tmp/$name.key" -www "$@" >"$tmp/served" 2>&1 \
    </dev/null &
  server=$!
  local i
  port=
  for i in $(seq 100); do
    port=$(sed -n 's/^ACCEPT .*:\([0-9]*\)$/\1/p' "$tmp/served")
    [ -n "$port" ] && return
    sleep 0.05
  done
}

# expect NAME PATTERN CA-FILE [CONNECT-SECONDS]: asks https://localhost:$port/
expect() {
  local got
  got=$(PL_TEST_KEY=sk-canary-0123456789 SSL_CERT_FILE=$3 CURL_CA_BUNDLE='' "$bin" "$tmp/ask.lua" \
    "https://localhost:$port/" "${4:-5}" 2>&1)
  if ! grep -Eq -- "$2" <<<"$got"; then
    echo "not ok $1: got $got, wanted $2"
  elif grep -q canary <<<"$got"; then
    echo "not ok $1: the key is in: $got"
  else
    echo "ok $1"
  fi
}

serve good
expect good_certificate $'^fine\t200\tsent' "$tmp/ca.pem"
expect no_authority $'^tls\t-\tunsent\tlocalhost:[0-9]+: no secure connection .*SSL_CERT_FILE' ''
serve self
expect self_signed $'^tls\t-\tunsent.*certificate' "$tmp/ca.pem"
serve expired
expect expired $'^tls\t-\tunsent.*expired.*clock' "$tmp/ca.pem"
serve other
expect wrong_host $'^tls\t-\tunsent.*(name|host)' "$tmp/ca.pem"
serve good -tls1_1 -cipher ALL:@SECLEVEL=0
expect old_protocol $'^tls\t-\tunsent.*(version|protocol)' "$tmp/ca.pem"
expect authority_missing $'^tls\t-\tunsent.*/none\.pem' "$tmp/none.pem"
stop
raw=${PL_TESTS:-build/tests}/rawserver
if [ -x "$raw" ]; then
  "$raw" >"$tmp/served" &
  server=$!
  for _ in $(seq 100); do
    port=$(sed -n 's/^port //p' "$tmp/served")
    [ -n "$port" ] && break
    sleep 0.05
  done
  expect plain_server $'^connect\t-\tunsent.*within 0.3 s' "$tmp/ca.pem" 0.3
else
  echo "skip plain_server no $raw"
fi
