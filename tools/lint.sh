#!/bin/sh
# gofmt, go vet, planecheck, checklocks, staticcheck when go.mod has it as a tool, and mypy where it is installed. Exit status 1 when one of them complains.
set -u
cd "$(dirname "$0")/.."
: "${GO:=go}"
status=0

unformatted=$(find . -name '*.go' -not -path './.git/*' -exec gofmt -l {} +)
if [ -n "$unformatted" ]; then
	echo "lint: not gofmt-ed:"
	echo "$unformatted"
	status=1
fi
"$GO" vet ./... || status=1
"$GO" vet -tags blockddebug ./... || status=1
"$GO" run ./tools/planecheck -any tools/planecheck/any.txt || status=1
"$GO" run ./tools/planecheck -tags blockddebug || status=1
# Which fields a mutex guards. Tests look at fields when nothing else runs, and are left out.
checklocks=$("$GO" tool -modfile=tools/lint.mod -n checklocks) && "$checklocks" -test=false -inferred=false ./... || status=1
if grep -Eq '^[[:space:]]*(tool[[:space:]]+)?honnef\.co/go/tools/cmd/staticcheck([[:space:]]|$)' go.mod; then
	"$GO" run honnef.co/go/tools/cmd/staticcheck ./... || status=1
else
	echo "lint: staticcheck is no tool of go.mod, left out"
fi
if command -v mypy >/dev/null; then
	mypy --config-file tools/mypy.ini iotests bench || status=1
else
	echo "lint: mypy is not there (package mypy), left out"
fi
exit $status
