// Package picture draws block graphs: as an indented tree for terminals, as
// Graphviz, and as SVG with a layout of its own (layout.go), so that a picture
// needs no other program.
//
// Drawing is deterministic: the same graph gives the same picture. Labels come
// from images and users; every writer escapes them for its format.
//
// Imports nothing of this module.
//
//blockd:any
package picture

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// Box is a node of the block graph or a user of it.
type Box struct {
	// ID is unique in the graph.
	ID string
	// Title is the first line, Lines are what follows.
	Title string
	Lines []string
	// User: no node, but who uses nodes: an export, a job, a monitor.
	User bool
}

// Arrow leads from who uses to what is used.
type Arrow struct {
	From, To string
	Label    string
	// Hint is what is said on demand, such as permissions.
	Hint string
}

// Graph is boxes in the order in which they are to be shown, and arrows, whose
// ends are among them.
type Graph struct {
	Boxes  []Box
	Arrows []Arrow
}

// Dot returns the graph for Graphviz.
func (g *Graph) Dot() string {
	var b strings.Builder
	b.WriteString("digraph blocks {\n  rankdir=TB;\n  node [shape=box, style=rounded, fontname=\"sans-serif\", fontsize=11];\n  edge [fontname=\"sans-serif\", fontsize=9];\n")
	for _, box := range g.Boxes {
		shape := ""
		if box.User {
			shape = ", shape=ellipse"
		}
		fmt.Fprintf(&b, "  %s [label=%s%s];\n", dotQuote(box.ID), dotQuote(strings.Join(append([]string{box.Title}, box.Lines...), "\n")), shape)
	}
	for _, a := range g.Arrows {
		fmt.Fprintf(&b, "  %s -> %s [label=%s, tooltip=%s];\n", dotQuote(a.From), dotQuote(a.To), dotQuote(a.Label), dotQuote(a.Hint))
	}
	b.WriteString("}\n")
	return b.String()
}

var dotEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", "")

func dotQuote(s string) string { return `"` + dotEscapes.Replace(s) + `"` }

// Text returns the graph as trees: each user with what it uses, then the nodes
// that nobody uses. What was shown already is named again, without what is
// below it.
func (g *Graph) Text() string {
	boxes := map[string]*Box{}
	used := map[string]bool{}
	below := map[string][]Arrow{}
	for i := range g.Boxes {
		boxes[g.Boxes[i].ID] = &g.Boxes[i]
	}
	for _, a := range g.Arrows {
		used[a.To] = true
		below[a.From] = append(below[a.From], a)
	}
	var b strings.Builder
	shown := map[string]bool{}
	var show func(id, label, lead, next string)
	show = func(id, label, lead, next string) {
		box := boxes[id]
		line := lead + label + box.Title
		if len(box.Lines) > 0 {
			line += "  (" + strings.Join(box.Lines, ", ") + ")"
		}
		if shown[id] && len(below[id]) > 0 {
			b.WriteString(line + " ...\n")
			return
		}
		shown[id] = true
		b.WriteString(line + "\n")
		for i, a := range below[id] {
			tick, deeper := "|- ", "|  "
			if i == len(below[id])-1 {
				tick, deeper = "`- ", "   "
			}
			show(a.To, a.Label+": ", next+tick, next+deeper)
		}
	}
	for _, users := range []bool{true, false} {
		for i := range g.Boxes {
			if box := &g.Boxes[i]; box.User == users && !used[box.ID] {
				show(box.ID, "", "", "")
			}
		}
	}
	return b.String()
}

// Sizes of the picture, in pixels.
const (
	charWidth  = 7.2 // of the widest letters that occur often
	lineHeight = 16.0
	padding    = 10.0
	gapX, gapY = 28.0, 56.0
	margin     = 16.0
	leastWidth = 90.0
)

// SVG returns the graph as a picture that stands alone, with colours for light
// and dark surroundings.
func (g *Graph) SVG() string {
	l := arrange(g)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n", l.width, l.height, l.width, l.height)
	b.WriteString(`<style>
.box{fill:#f6f8fa;stroke:#57606a}.user{fill:#ddf4ff;stroke:#0969da}
.title{fill:#1f2328;font-weight:bold}.line,.label{fill:#57606a}.label{font-size:10px}.arrow{stroke:#57606a;fill:none}.head{fill:#57606a}
@media (prefers-color-scheme:dark){.box{fill:#161b22;stroke:#8b949e}.user{fill:#0c2d6b;stroke:#58a6ff}.title{fill:#e6edf3}.line,.label{fill:#8b949e}.arrow{stroke:#8b949e}.head{fill:#8b949e}}
</style>
<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto"><path class="head" d="M0,0 L8,4 L0,8 z"/></marker></defs>
`)
	for i, a := range g.Arrows {
		points := l.routes[i]
		fmt.Fprintf(&b, `<g><title>%s</title><path class="arrow" marker-end="url(#head)" d="%s"/>`, escape(a.Hint), curve(points))
		middle := points[len(points)/2]
		if len(points) == 2 {
			middle = point{(points[0].x + points[1].x) / 2, (points[0].y + points[1].y) / 2}
		}
		fmt.Fprintf(&b, `<text class="label" x="%.1f" y="%.1f">%s</text></g>`+"\n", middle.x+4, middle.y, escape(a.Label))
	}
	for i, box := range g.Boxes {
		at := l.places[i]
		class, radius := "box", 6.0
		if box.User {
			class, radius = "box user", at.h/2
		}
		fmt.Fprintf(&b, `<g><rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="%.1f"/>`, class, at.x, at.y, at.w, at.h, radius)
		y := at.y + padding + lineHeight*0.75
		fmt.Fprintf(&b, `<text class="title" text-anchor="middle" x="%.1f" y="%.1f">%s</text>`, at.x+at.w/2, y, escape(box.Title))
		for _, line := range box.Lines {
			y += lineHeight
			fmt.Fprintf(&b, `<text class="line" text-anchor="middle" x="%.1f" y="%.1f">%s</text>`, at.x+at.w/2, y, escape(line))
		}
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// escape makes text what XML may hold, whatever it was.
func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes everything
	return b.String()
}

// curve is a smooth path through points, from the top down.
func curve(points []point) string {
	var b strings.Builder
	fmt.Fprintf(&b, "M%.1f,%.1f", points[0].x, points[0].y)
	for i := 1; i < len(points); i++ {
		p, q := points[i-1], points[i]
		half := (q.y - p.y) / 2
		fmt.Fprintf(&b, " C%.1f,%.1f %.1f,%.1f %.1f,%.1f", p.x, p.y+half, q.x, q.y-half, q.x, q.y)
	}
	return b.String()
}
