#!/bin/sh
# Builds bin/blockd-test with assertions on (-tags blockddebug), and with the race detector when a C
# compiler is there. Arguments go to `go build`.
set -eu
cd "$(dirname "$0")/.."
: "${GO:=go}"

if echo 'int main(void) { return 0; }' | "${CC:-cc}" -xc -o /dev/null - 2>/dev/null; then
	CGO_ENABLED=1 exec "$GO" build -race -tags blockddebug "$@" -o bin/blockd-test ./cmd/blockd
fi
echo "build-test: no C compiler, so without the race detector"
CGO_ENABLED=0 exec "$GO" build -tags blockddebug "$@" -o bin/blockd-test ./cmd/blockd
