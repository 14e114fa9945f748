// Package console is the page that the daemon serves to people: the block graph
// and its past, jobs, images, events and a command line of QMP. It is files
// that are part of the program, and speaks QMP over the WebSocket of the same
// address like any other client; nothing here knows the daemon.
//
// The page may load its own files and talk to its own address, nothing else:
// policy says so to the browser. What the page shows (names of nodes, texts of
// errors) comes from images and clients; it becomes text, never markup, which
// the policy enforces, too (Trusted Types).
//
// In static/: pure parts, which test/unit tests in node (model, layout,
// display, export, completion), what holds the daemon's state (qmp, daemon),
// and views, which test/browser drives in a browser. docs/console.md shows it.
//
// Imports docs only.
package console

import (
	"embed"
	"io/fs"
	"net/http"
	"path"

	"blockd/docs"
)

//go:embed static
var static embed.FS

// policy is the page's Content-Security-Policy.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// types are those of the files that there are; the machine's own table is not
// asked.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
	".md":   "text/markdown; charset=utf-8",
}

// Handler serves the page at / and its files below /console/.
func Handler() http.Handler {
	files, err := fs.Sub(static, "static")
	if err != nil {
		panic("console: " + err.Error()) // the folder is part of the program
	}
	mux := http.NewServeMux()
	serve := func(pattern, name string, content []byte) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set("Content-Security-Policy", policy)
			h.Set("Content-Type", types[path.Ext(name)])
			h.Set("Referrer-Policy", "no-referrer")
			_, _ = w.Write(content) // a client that left is nobody's trouble
		})
	}
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		panic("console: " + err.Error())
	}
	for _, e := range entries {
		content, err := fs.ReadFile(files, e.Name())
		if err != nil {
			panic("console: " + err.Error())
		}
		if e.Name() == "index.html" {
			serve("GET /{$}", e.Name(), content)
			continue
		}
		serve("GET /console/"+e.Name(), e.Name(), content)
	}
	serve("GET /console/commands.md", "commands.md", []byte(docs.Commands))
	return mux
}
