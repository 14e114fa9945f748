package web

import (
	"net/http"
	"net/http/pprof"
)

// profiles answers /debug/pprof/: profiles of the running program, for who
// controls it. They show names of functions and, in a trace, when they ran; the
// command line, which may have secrets, is left out. A profile that takes time
// (profile, trace) ends with the time for an answer: ask for `seconds` below it.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", http.NotFound)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}
