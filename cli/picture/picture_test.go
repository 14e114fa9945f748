package picture

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// chain is an export over an overlay that shares its base with another node.
func chain() *Graph {
	return &Graph{
		Boxes: []Box{
			{ID: "1", Title: "e0", Lines: []string{"nbd export"}, User: true},
			{ID: "2", Title: "top", Lines: []string{"qcow2"}}, {ID: "3", Title: "base", Lines: []string{"raw"}},
			{ID: "4", Title: "other"}, {ID: "5", Title: "file"},
		},
		Arrows: []Arrow{
			{From: "1", To: "2", Label: "root"}, {From: "2", To: "3", Label: "backing"},
			{From: "4", To: "3", Label: "backing"}, {From: "2", To: "5", Label: "file"}, {From: "3", To: "5", Label: "file"},
		},
	}
}

func TestTextShowsWhatIsSharedOnce(t *testing.T) {
	want := `e0  (nbd export)
` + "`" + `- root: top  (qcow2)
   |- backing: base  (raw)
   |  ` + "`" + `- file: file
   ` + "`" + `- file: file
other
` + "`" + `- backing: base  (raw) ...
`
	if got := chain().Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// drawGraph makes any graph without cycles.
func drawGraph(t *rapid.T) *Graph {
	g := &Graph{}
	n := rapid.IntRange(1, 30).Draw(t, "boxes")
	for i := range n {
		g.Boxes = append(g.Boxes, Box{
			ID: string(rune('A' + i)), Title: rapid.String().Draw(t, "title"),
			Lines: rapid.SliceOfN(rapid.String(), 0, 3).Draw(t, "lines"), User: i%3 == 0,
		})
	}
	for range rapid.IntRange(0, 2*n).Draw(t, "arrows") {
		from, to := rapid.IntRange(0, n-1).Draw(t, "from"), rapid.IntRange(0, n-1).Draw(t, "to")
		if from < to {
			g.Arrows = append(g.Arrows, Arrow{From: g.Boxes[from].ID, To: g.Boxes[to].ID, Label: rapid.String().Draw(t, "label")})
		}
	}
	return g
}

func TestLayoutOverlapsNothingAndLeadsDown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		l := arrange(g)
		for i, a := range l.places {
			if a.x < 0 || a.y < 0 || a.x+a.w > l.width || a.y+a.h > l.height {
				t.Fatalf("box %d at %v is outside of %v x %v", i, a, l.width, l.height)
			}
			for k, b := range l.places[:i] {
				if a.x < b.x+b.w && b.x < a.x+a.w && a.y < b.y+b.h && b.y < a.y+a.h {
					t.Fatalf("boxes %d and %d overlap: %v, %v", k, i, b, a)
				}
			}
		}
		for i, route := range l.routes {
			for k := 1; k < len(route); k++ {
				if route[k].y <= route[k-1].y {
					t.Fatalf("arrow %d does not lead down: %v", i, route)
				}
			}
		}
	})
}

func TestSVGIsXMLWhateverTheNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		svg := g.SVG()
		if svg != g.SVG() {
			t.Fatal("two pictures of one graph differ")
		}
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				t.Fatalf("%v in %s", err, svg)
			}
		}
	})
}

// A graph from elsewhere may have a cycle; it must be drawn all the same.
func TestCyclesAreDrawn(t *testing.T) {
	g := &Graph{Boxes: []Box{{ID: "a", Title: "a"}, {ID: "b", Title: "b"}}, Arrows: []Arrow{{From: "a", To: "b"}, {From: "b", To: "a"}, {From: "a", To: "a"}}}
	if svg := g.SVG(); strings.Count(svg, `class="arrow"`) != 3 {
		t.Errorf("not all arrows are there: %s", svg)
	}
}

func TestGraphvizTextIsQuoted(t *testing.T) {
	g := &Graph{Boxes: []Box{{ID: "1", Title: "a\"b\\c", Lines: []string{"d"}}}, Arrows: []Arrow{{From: "1", To: "1", Label: "x\ny"}}}
	dot := g.Dot()
	for _, want := range []string{`"1" [label="a\"b\\c\nd"];`, `"1" -> "1" [label="x\ny", tooltip=""];`} {
		if !strings.Contains(dot, want) {
			t.Errorf("%s is not in %s", want, dot)
		}
	}
}
