package console

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"

	"blockd/docs"
)

func get(t *testing.T, name string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, name, nil))
	return w
}

// TestEveryFileIsServedUnderThePolicy asks for the page and each of its files.
func TestEveryFileIsServedUnderThePolicy(t *testing.T) {
	entries, err := fs.ReadDir(static, "static")
	if err != nil || len(entries) < 5 {
		t.Fatal(err, len(entries))
	}
	for _, e := range entries {
		name, at := e.Name(), "/console/"+e.Name()
		if name == "index.html" {
			at = "/"
		}
		w := get(t, at)
		content, _ := fs.ReadFile(static, "static/"+name)
		if w.Code != http.StatusOK || w.Body.String() != string(content) {
			t.Errorf("%s: %d, %d bytes of %d", at, w.Code, w.Body.Len(), len(content))
		}
		if got := w.Header().Get("Content-Type"); got == "" || got != types[path.Ext(name)] {
			t.Errorf("%s: type %q", at, got)
		}
		if got := w.Header().Get("Content-Security-Policy"); got != policy {
			t.Errorf("%s: policy %q", at, got)
		}
	}
	if w := get(t, "/console/commands.md"); w.Body.String() != docs.Commands || !strings.Contains(docs.Commands, "### query-jobs") {
		t.Error("the commands' document is not served")
	}
	for _, none := range []string{"/other", "/console/", "/console/none.js", "/console/../console.go"} {
		if w := get(t, none); w.Code == http.StatusOK {
			t.Errorf("%s is served", none)
		}
	}
}

// TestPolicyAllowsNothingFromElsewhere reads the policy as a browser does.
func TestPolicyAllowsNothingFromElsewhere(t *testing.T) {
	allowed := map[string]string{}
	for _, d := range strings.Split(policy, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(d), " ")
		allowed[name] = value
		for _, source := range strings.Fields(value) {
			if source != "'none'" && source != "'self'" && source != "'script'" {
				t.Errorf("%s allows %s", name, source)
			}
		}
	}
	for _, none := range []string{"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"} {
		if allowed[none] != "'none'" {
			t.Errorf("%s is %q", none, allowed[none])
		}
	}
}

var (
	imported  = regexp.MustCompile(`(?m)^import .* from "\./([^"]+)";$|(?:href|src)="console/([^"]+)"`)
	elsewhere = regexp.MustCompile(`(?:https?|wss?):?//[a-z0-9.]*`)
	markup    = regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|setAttribute\("style"`)
)

// TestFilesReferToNothingElsewhere requires that what a file loads is there,
// that none names another address, and that text never becomes markup.
func TestFilesReferToNothingElsewhere(t *testing.T) {
	entries, _ := fs.ReadDir(static, "static")
	loaded := map[string]bool{"index.html": true}
	for _, e := range entries {
		if e.Name() == "dagre.js" { // another's, as it is; its header has the licence
			continue
		}
		content, err := fs.ReadFile(static, "static/"+e.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range imported.FindAllStringSubmatch(string(content), -1) {
			name := m[1] + m[2]
			loaded[name] = true
			if _, err := fs.Stat(static, "static/"+name); err != nil {
				t.Errorf("%s loads %s: %v", e.Name(), name, err)
			}
		}
		for _, u := range elsewhere.FindAllString(string(content), -1) {
			if u != "http://www.w3.org" { // the name of SVG, which nobody loads
				t.Errorf("%s names %s", e.Name(), u)
			}
		}
		if m := markup.FindString(string(content)); m != "" {
			t.Errorf("%s uses %s", e.Name(), m)
		}
		if n := strings.Count(string(content), "\n"); n > 600 {
			t.Errorf("%s has %d lines", e.Name(), n)
		}
	}
	for _, e := range entries {
		if !loaded[e.Name()] {
			t.Errorf("nothing loads %s", e.Name())
		}
	}
}
