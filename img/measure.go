package img

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/formats/luks"
	"blockd/formats/qcow2"
	"blockd/qapi"
	"blockd/qmpclient"
)

func measureCommand(t *tool) *cobra.Command {
	var o source
	var out output
	var format, size, snapshot string
	var options []string
	cmd := t.command("measure [FILE]", "Tell how long the file of a copy would be", nil, func(s *session, args []string) error {
		json, err := out.json()
		if err != nil {
			return err
		}
		var ask snapshotName
		if snapshot != "" {
			if ask, err = parseSnapshot(snapshot); err != nil {
				return err
			}
		}
		switch {
		case len(args) > 1:
			return errors.New("At most one filename argument is allowed.")
		case len(args) == 0 && (o.imageOpts || o.format != "" || snapshot != ""):
			return errors.New("--image-opts, -f, and -l require a filename argument.")
		case size != "" && len(args) == 1:
			return errors.New("--size N cannot be used together with a filename.")
		case size == "" && len(args) == 0:
			return errors.New("Either --size N or one filename must be specified.")
		}
		if err := s.checkFormat(format); err != nil {
			return err
		}
		parsed, err := parseOptions(options)
		if err != nil {
			return err
		}
		m := measurement{s: s, o: newImage{format: format, options: parsed}}
		if size != "" {
			n, err := parseSize("image size", size)
			if err != nil {
				return err
			}
			m.o.size = n
		} else {
			o.name = args[0]
			if m.from, err = s.openImage(o, mode{}); err != nil {
				return err
			}
			if snapshot != "" {
				if err := s.loadSnapshot(m.from, ask); err != nil {
					return fmt.Errorf("Failed to load snapshot: %w", err)
				}
			}
			m.o.size = m.from.Size()
		}
		result, err := m.measure()
		if err != nil {
			return err
		}
		if json {
			return s.printJSON(result)
		}
		text := fmt.Sprintf("required size: %d\nfully allocated size: %d", qmpclient.Int(result, "required"), qmpclient.Int(result, "fully-allocated"))
		if result.Has("bitmaps") {
			text += fmt.Sprintf("\nbitmaps size: %d", qmpclient.Int(result, "bitmaps"))
		}
		_, err = fmt.Fprintln(s.env.Out, text)
		return err
	})
	o.register(cmd)
	o.registerShare(cmd)
	out.register(cmd)
	f := cmd.Flags()
	f.StringVarP(&format, "output-format", "O", "raw", "the copy's format")
	f.StringVarP(&snapshot, "snapshot", "l", "", "of what an internal snapshot holds: its id or name, or snapshot.id=ID,snapshot.name=NAME")
	f.StringVar(&size, "size", "", "of an empty disk of that length")
	f.StringArrayVarP(&options, "options", "o", nil, "options of the copy's format: NAME=VALUE,...")
	return cmd
}

// measurement is what measure is asked.
type measurement struct {
	s    *session
	o    newImage
	from *blockgraph.Node // nil: an empty disk
}

func (m *measurement) measure() (*qapi.Object, error) {
	if m.o.format == "raw" {
		return qapi.NewObject("required", m.o.size, "fully-allocated", m.o.size), nil
	}
	typed, err := m.options()
	if err != nil {
		return nil, err
	}
	if typed.LUKS != nil {
		header, err := m.header(&typed.LUKS.QCryptoBlockCreateOptionsLUKS, "")
		if err != nil {
			return nil, err
		}
		return qapi.NewObject("required", header+m.o.size, "fully-allocated", header+m.o.size), nil
	}
	return m.qcow2(typed.Qcow2)
}

// maxTables is how many L2 tables an image of qcow2 may have: its L1 table may have
// 32 MiB.
const maxTables = 32 << 20 / 8

func (m *measurement) qcow2(o *qapi.BlockdevCreateOptionsQcow2) (*qapi.Object, error) {
	o.Size = uint64(roundUp(int64(o.Size), 512))
	cluster := int64(65536)
	if o.ClusterSize != nil {
		cluster = int64(*o.ClusterSize)
	}
	// It also refuses cluster sizes that are none.
	if _, _, err := qcow2.Measure(o, 0); err != nil {
		return nil, err
	}
	entry := int64(8)
	if o.ExtendedL2 != nil && *o.ExtendedL2 {
		entry = 16
	}
	if table := cluster / entry * cluster; (int64(o.Size)-1)/table >= maxTables {
		return nil, errors.New("The image size is too large (try using a larger cluster size)")
	}
	header, data := int64(0), int64(0)
	var err error
	if o.Encrypt != nil && o.Encrypt.LUKS != nil {
		if header, err = m.header(o.Encrypt.LUKS, "encrypt."); err != nil {
			return nil, err
		}
		header = roundUp(header, cluster)
	}
	switch {
	case m.from == nil:
	case o.BackingFile != nil:
		// What both have in common is not known.
		data = roundUp(m.o.size, cluster)
	default:
		if data, err = m.data(cluster); err != nil {
			return nil, err
		}
	}
	required, full, err := qcow2.Measure(o, data)
	if err != nil {
		return nil, err
	}
	result := qapi.NewObject("required", header+required, "fully-allocated", header+full)
	if m.from != nil && m.from.Type().Name == "qcow2" && (o.Version == nil || *o.Version != qapi.BlockdevQcow2VersionV2) {
		bitmaps, err := m.bitmaps(cluster)
		if err != nil {
			return nil, err
		}
		if bitmaps >= 0 {
			result.Set("bitmaps", bitmaps)
		}
	}
	return result, nil
}

// header is the length of a LUKS header, for which there has to be a key, as for
// a copy.
func (m *measurement) header(o *qapi.QCryptoBlockCreateOptionsLUKS, prefix string) (int64, error) {
	keys := luks.Config{Secret: m.s.d.Objects.SecretText}
	if _, err := keys.Password(o.KeySecret, prefix); err != nil {
		return 0, err
	}
	return luks.HeaderLength(o)
}

// options are those of the new image, typed.
func (m *measurement) options() (*qapi.BlockdevCreateOptions, error) {
	flat := m.o.options.Flatten()
	if err := ofImage(m.o.format).check(flat); err != nil {
		return nil, errors.Join(err, fmt.Errorf("Invalid options for file format '%s'", m.o.format))
	}
	words := qapi.NewObject("driver", m.o.format, "size", m.o.size, "file", "unused")
	for key, v := range flat.All() {
		if key != "size" && (created[m.o.format].have(key) || !ofFile.have(key)) {
			if key, v = formatOption(key, v); key != "" {
				words.Set(key, v)
			}
		}
	}
	var typed qapi.BlockdevCreateOptions
	err := qapi.DecodeFlat(words, &typed)
	return &typed, err
}

// data returns how many bytes of clusters hold data.
func (m *measurement) data(cluster int64) (int64, error) {
	r, err := m.s.root(m.from, blockgraph.PermConsistentRead)
	if err != nil {
		return 0, err
	}
	defer m.s.closeRoot(r)
	total, counted := int64(0), int64(0) // counted: the end of the last cluster
	for off, size := int64(0), m.from.Size(); off < size; {
		e, err := extentAt(m.s.ctx, r, off, size-off)
		if err != nil {
			return 0, err
		}
		if e.data() {
			from, end := max(counted, off/cluster*cluster), roundUp(off+e.N, cluster)
			total += max(0, end-from)
			counted = max(counted, end)
		}
		off += e.N
	}
	return total, nil
}

// bitmaps returns the room that stored bitmaps would take, -1 where the source
// can have none.
func (m *measurement) bitmaps(cluster int64) (int64, error) {
	info, err := m.s.infoOf(m.from)
	if err != nil {
		return 0, err
	}
	data := qmpclient.Member(qmpclient.Member(info, "format-specific"), "data")
	if qmpclient.String(data, "compat") == "0.10" {
		return -1, nil
	}
	total, directory := int64(0), int64(0)
	for _, b := range qmpclient.Objects(data, "bitmaps") {
		bits := roundUp(m.from.Size(), qmpclient.Int(b, "granularity")) / qmpclient.Int(b, "granularity")
		clusters := roundUp(roundUp(bits, 8)/8, cluster) / cluster
		total += clusters*cluster + roundUp(clusters*8, cluster)
		directory += roundUp(24+int64(len(qmpclient.String(b, "name"))), 8)
	}
	return total + roundUp(directory, cluster), nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// formatOption is an option of qemu-img in QMP's words, "" for none.
func formatOption(key string, v any) (string, any) {
	if key == "encryption" {
		if word, _ := v.(string); switches[word] {
			return "encrypt.format", "qcow"
		}
		return "", nil
	}
	if key == "compat" {
		if version, ok := map[any]string{"0.10": "v2", "1.1": "v3"}[v]; ok {
			v = version
		}
		return "version", v
	}
	if key == "encrypt.format" && v == "aes" {
		v = "qcow"
	}
	return strings.ReplaceAll(key, "_", "-"), v
}
