// What lint runs beside the tools of go.mod: go tool -modfile=tools/lint.mod NAME.
module blockd

go 1.26.3

tool gvisor.dev/gvisor/tools/checklocks/cmd/checklocks

require (
	golang.org/x/mod v0.42.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/tools v0.52.0 // indirect
	gvisor.dev/gvisor v0.0.0-20260905035102-160fafc42237 // indirect
)
