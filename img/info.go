package img

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmpclient"
)

func infoCommand(t *tool) *cobra.Command {
	var o source
	var out output
	var chain bool
	cmd := t.command("info FILE", "Tell what an image is", oneImage, func(s *session, args []string) error {
		json, err := out.json()
		if err != nil {
			return err
		}
		o.name = args[0]
		infos, err := s.infos(o, chain)
		if err != nil {
			return err
		}
		switch {
		case json && chain:
			return s.printJSON(infos)
		case json:
			return s.printJSON(infos[0])
		}
		var texts []string
		for _, info := range infos {
			texts = append(texts, humanInfo(info.(*qapi.Object)))
		}
		_, err = s.env.Out.Write([]byte(strings.Join(texts, "\n")))
		return err
	})
	o.register(cmd)
	o.registerShare(cmd)
	out.register(cmd)
	cmd.Flags().BoolVar(&chain, "backing-chain", false, "the images below it, too")
	return cmd
}

// infos returns what is known of an image and, with chain, of all below it.
func (s *session) infos(o source, chain bool) ([]any, error) {
	var list []any
	seen := map[string]bool{}
	for {
		if seen[o.name] {
			return nil, fmt.Errorf("Backing file '%s' creates an infinite loop.", o.name)
		}
		seen[o.name] = true
		n, err := s.openImage(o, mode{noBacking: true, headerOnly: true})
		if err != nil {
			return nil, err
		}
		info, err := s.infoOf(n)
		if err != nil {
			return nil, err
		}
		list = append(list, info)
		below := qmpclient.String(info, "full-backing-filename")
		if !chain || below == "" {
			return list, nil
		}
		o = source{name: below, format: qmpclient.String(info, "backing-filename-format"), share: o.share}
	}
}

// infoOf is ImageInfo of a node, with those of its children.
func (s *session) infoOf(n *blockgraph.Node) (*qapi.Object, error) {
	nodes, err := s.execute("query-named-block-nodes", qapi.NewObject("flat", true))
	if err != nil {
		return nil, err
	}
	images := map[string]*qapi.Object{}
	for _, o := range qmpclient.ObjectsOf(nodes) {
		images[qmpclient.String(o, "node-name")] = o
	}
	return describe(images, n.Name()), nil
}

// describe makes a node's ImageInfo what it is without a daemon: with the
// children's, and without limits.
func describe(nodes map[string]*qapi.Object, name string) *qapi.Object {
	info := qmpclient.Member(nodes[name], "image")
	info.Delete("limits")
	children := []any{}
	for _, c := range qmpclient.Objects(nodes[name], "children") {
		if edge := qmpclient.String(c, "child"); edge != "backing" {
			children = append(children, qapi.NewObject("name", edge, "info", describe(nodes, qmpclient.String(c, "node-name"))))
		}
	}
	info.Set("children", children)
	return info
}

// humanInfo is ImageInfo in the field's lines.
func humanInfo(info *qapi.Object) string {
	var b strings.Builder
	size := qmpclient.Int(info, "virtual-size")
	fmt.Fprintf(&b, "image: %s\nfile format: %s\nvirtual size: %s (%d bytes)\n",
		qmpclient.String(info, "filename"), qmpclient.String(info, "format"), units(size), size)
	disk := "unavailable"
	if info.Has("actual-size") {
		disk = units(qmpclient.Int(info, "actual-size"))
	}
	fmt.Fprintf(&b, "disk size: %s\n", disk)
	if qmpclient.Bool(info, "encrypted") {
		b.WriteString("encrypted: yes\n")
	}
	if n := qmpclient.Int(info, "cluster-size"); n != 0 {
		fmt.Fprintf(&b, "cluster_size: %d\n", n)
	}
	if qmpclient.Bool(info, "dirty-flag") {
		b.WriteString("cleanly shut down: no\n")
	}
	if name := qmpclient.String(info, "backing-filename"); name != "" {
		b.WriteString("backing file: " + name)
		switch full := qmpclient.String(info, "full-backing-filename"); full {
		case name:
		case "":
			b.WriteString(" (cannot determine actual path)")
		default:
			b.WriteString(" (actual path: " + full + ")")
		}
		b.WriteString("\n")
		if f := qmpclient.String(info, "backing-filename-format"); f != "" {
			b.WriteString("backing file format: " + f + "\n")
		}
	}
	if list := qmpclient.Objects(info, "snapshots"); len(list) > 0 {
		b.WriteString("Snapshot list:\n" + snapshotTable(list))
	}
	specific := qmpclient.Member(info, "format-specific")
	if data := qmpclient.Member(specific, "data"); data.Len() > 0 {
		b.WriteString("Format specific information:\n")
		dump(&b, data, 1)
	}
	return b.String()
}

// snapshotTable is the list of an image's snapshots.
func snapshotTable(list []*qapi.Object) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-9s %-16s %8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
	for _, s := range list {
		date := time.Unix(qmpclient.Int(s, "date-sec"), 0).Format(time.DateTime)
		sec, nsec := qmpclient.Int(s, "vm-clock-sec"), qmpclient.Int(s, "vm-clock-nsec")
		clock := fmt.Sprintf("%02d:%02d:%02d.%03d", sec/3600, sec/60%60, sec%60, nsec/1e6)
		count := ""
		if s.Has("icount") {
			count = fmt.Sprint(qmpclient.Int(s, "icount"))
		}
		fmt.Fprintf(&b, "%-9s %-16s %8s%20s%13s%11s\n", qmpclient.String(s, "id"), qmpclient.String(s, "name"),
			units(qmpclient.Int(s, "vm-state-size")), date, clock, count)
	}
	return b.String()
}
