package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/formats/luks"
	"blockd/qapi"
)

const testPassword = "hunter"

// testKeys has the secrets of the tests.
var testKeys = luks.Config{Clock: clock.Real(), Secret: func(id string) (string, error) {
	switch id {
	case "s":
		return testPassword, nil
	case "n":
		return "new one", nil
	}
	return "", fmt.Errorf("No secret with id '%s'", id)
}}

// openCrypt opens encrypted images, by the secret s unless told otherwise. Keys
// that were found once are remembered: the tests open images thousands of times.
func (c testChildren) openCrypt(ctx context.Context, h *header, ext *extensions, o *qapi.BlockdevOptions) (*encryption, error) {
	if o.Qcow2 != nil && o.Qcow2.Encrypt != nil {
		return openCrypt(ctx, c.file, h, ext, o, testKeys)
	}
	s := qapi.QCryptoBlockOptionsLUKS{KeySecret: ptr("s")}
	with := &qapi.BlockdevOptions{Qcow2: &qapi.BlockdevOptionsQcow2{Encrypt: &qapi.BlockdevQcow2Encryption{LUKS: &s}}}
	if h.cryptMethod == cryptAES || !ext.crypto.present {
		return openCrypt(ctx, c.file, h, ext, with, testKeys)
	}
	head := make([]byte, 592)
	if err := readAt(ctx, c.f, int64(ext.crypto.offset), head); err != nil {
		return nil, err
	}
	if v, ok := foundKeys.Load(string(head)); ok {
		e := *v.(*encryption)
		e.at = ext.crypto
		return &e, nil
	}
	e, err := openCrypt(ctx, c.file, h, ext, with, testKeys)
	if err == nil {
		foundKeys.Store(string(head), e)
	}
	return e, err
}

var foundKeys sync.Map

// encrypted makes an image with LUKS, cheaply.
func encrypted(o *qapi.BlockdevCreateOptionsQcow2) {
	l := &qapi.QCryptoBlockCreateOptionsLUKS{IterTime: ptr(int64(0)), CipherAlg: ptr(qapi.QCryptoCipherAlgorithmAES128), CipherMode: ptr(qapi.QCryptoCipherModeCBC)}
	l.KeySecret = ptr("s")
	o.Encrypt = &qapi.QCryptoBlockCreateOptions{Format: qapi.QCryptoBlockFormatLUKS, LUKS: l}
}

func encryptedAES(o *qapi.BlockdevCreateOptionsQcow2) {
	o.Encrypt = &qapi.QCryptoBlockCreateOptions{Format: qapi.QCryptoBlockFormatQCow, QCow: &qapi.QCryptoBlockOptionsQCow{KeySecret: ptr("s")}}
}

// isEncrypted tells whether an image's header says so.
func isEncrypted(f *memFile) bool {
	return binary.BigEndian.Uint32(f.b[fieldCryptMethod:]) != cryptNone
}

// fieldOpen are the arguments with which the field's tools open an image.
func fieldOpen(f *memFile, path string) []string {
	if !isEncrypted(f) {
		return []string{"-f", "qcow2", path}
	}
	return []string{"--object", "secret,id=s,data=" + testPassword, "--image-opts", "driver=qcow2,encrypt.key-secret=s,file.filename=" + path}
}

// compareEncrypted is compareWithField for an encrypted image.
func compareEncrypted(t *testing.T, img string, f *memFile, path string, want []byte) {
	t.Helper()
	args := fieldOpen(f, path)
	run(t, append([]string{img, "check", "-q"}, args...)...)
	raw := save(t, &memFile{b: want}, "want.raw")
	run(t, img, "compare", "-q", args[0], args[1], args[2], args[3], "driver=raw,file.filename="+raw)
}

var cryptOptions = map[string]imageOption{"luks": encrypted, "aes": encryptedAES}

func TestFieldReadsWhatWeEncrypt(t *testing.T) {
	io, img := tool(t, "qemu-io"), tool(t, "qemu-img")
	for name, option := range cryptOptions {
		t.Run(name, func(t *testing.T) {
			f := newImage(t, 4<<20, option, clusterSize(4096))
			d := openImage(t, f, nil)
			put(t, d, 0, fill(0x11, 9728))
			put(t, d, 1<<20, fill(0x22, 1<<20+512))
			put(t, d, 3<<20+512, fill(0x33, 512))
			closeImage(t, d)
			if bytes.Contains(f.b, fill(0x22, 64)) || bytes.Contains(f.b, fill(0x33, 64)) {
				t.Error("the file has the plain text")
			}
			mustCheck(t, f, true)
			path := save(t, f, "ours.qcow2")
			args := fieldOpen(f, path)
			run(t, append([]string{io}, append(args[:len(args):len(args)], "-c", "read -P 0x11 0 9728", "-c", "read -P 0 9728 2560", "-c", "read -P 0x22 1M 1049088",
				"-c", "read -P 0 3M 512", "-c", "read -P 0x33 3146240 512", "-c", "read -P 0 3146752 3072")...)...)
			run(t, append([]string{img, "check", "-q"}, args...)...)
		})
	}
}

func TestWeReadWhatTheFieldEncrypts(t *testing.T) {
	io, img := tool(t, "qemu-io"), tool(t, "qemu-img")
	for _, name := range []string{"luks", "aes"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "theirs.qcow2")
			options := "encrypt.format=" + name + ",encrypt.key-secret=s,cluster_size=4k"
			if name == "luks" {
				options += ",encrypt.iter-time=10"
			}
			for i := 0; ; i++ {
				out, err := exec.Command(img, "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data="+testPassword, "-o", options, path, "4M").CombinedOutput()
				if err == nil {
					break
				}
				if !strings.Contains(string(out), "Unable to get accurate CPU usage") {
					t.Fatalf("%v\n%s", err, out)
				}
				if i == 5 {
					t.Log("qemu-img cannot measure its computing time on this machine now")
					return
				}
			}
			args := fieldOpen(load(t, path), path)
			run(t, append([]string{io}, append(args[:len(args):len(args)], "-c", "write -P 0x44 512 1M", "-c", "write -P 0x55 3M 512")...)...)
			f := load(t, path)
			d := openImage(t, f, nil)
			if !bytes.Equal(get(t, d, 0, 4<<20), bytes.Join([][]byte{fill(0, 512), fill(0x44, 1<<20), fill(0, 2<<20-512), fill(0x55, 512), fill(0, 1<<20-512)}, nil)) {
				t.Error("content differs")
			}
			put(t, d, 1<<20, fill(0x66, 8192))
			closeImage(t, d)
			mustCheck(t, f, true)
			args = fieldOpen(f, save(t, f, "changed.qcow2"))
			run(t, append([]string{io}, append(args[:len(args):len(args)], "-c", "read -P 0x44 512 1048064", "-c", "read -P 0x66 1M 8192", "-c", "read -P 0x55 3M 512")...)...)
			run(t, append([]string{img, "check", "-q"}, args...)...)
		})
	}
}

func TestEncryptedImageOverBackingFile(t *testing.T) {
	for name, option := range cryptOptions {
		backing := &memFile{b: fill(0x77, 1<<20)}
		f := newImage(t, 1<<20, option, clusterSize(4096))
		d := openImage(t, f, backing)
		put(t, d, 4096+512, fill(0x88, 512))
		want := fill(0x77, 1<<20)
		copy(want[4096+512:], fill(0x88, 512))
		if !bytes.Equal(get(t, d, 0, 1<<20), want) {
			t.Errorf("%s: content differs", name)
		}
		closeImage(t, d)
		if bytes.Contains(f.b, fill(0x77, 64)) {
			t.Errorf("%s: what was copied from the backing file is in the clear", name)
		}
	}
}

// A guest that writes three bytes has the wrapper read and write their sector.
func TestEncryptedImageTakesWholeSectors(t *testing.T) {
	for name, option := range cryptOptions {
		if n := openImage(t, newImage(t, 1<<20, option), nil).Limits().RequestAlignment; n != 512 {
			t.Errorf("%s: an alignment of %d", name, n)
		}
	}
	if n := openImage(t, newImage(t, 1<<20), nil).Limits().RequestAlignment; n > 1 {
		t.Errorf("not encrypted: an alignment of %d", n)
	}
}

func TestCompressedWriteIsEncryptedInstead(t *testing.T) {
	f := newImage(t, 1<<20, encrypted, clusterSize(4096))
	d := openImage(t, f, nil)
	if err := d.WriteV(ctxb, 0, blockgraph.MakeIOVec(fill(0x99, 8192)), blockgraph.Compressed); err != nil {
		t.Fatal(err)
	}
	st, err := d.BlockStatus(ctxb, 0, 8192, blockgraph.StatusPrecise)
	if err != nil || st.Flags != blockgraph.StatusData || st.N != 8192 {
		t.Errorf("%+v, %v", st, err)
	}
	if !bytes.Equal(get(t, d, 0, 8192), fill(0x99, 8192)) {
		t.Error("content differs")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

func TestPreallocatedImageReadsAsZeroes(t *testing.T) {
	for _, opts := range [][]imageOption{
		{encrypted}, {encryptedAES}, {encryptedAES, v2}, {encrypted, extended}, {}, {v2}, {extended},
		{dirty}, {dirty, v2}, {dirty, extended}, {dirty, external}, {dirty, encrypted},
	} {
		for _, mode := range []qapi.PreallocMode{qapi.PreallocModeMetadata, qapi.PreallocModeFull} {
			f := newImage(t, 1<<20, append(opts, prealloc(mode), clusterSize(16<<10))...)
			d := openImage(t, f, nil)
			if !bytes.Equal(get(t, d, 0, 1<<20), fill(0, 1<<20)) {
				t.Errorf("%s: it is not zero", mode)
			}
			size := len(f.b)
			put(t, d, 4096, fill(0xaa, 512))
			if err := d.Truncate(ctxb, 2<<20, false, mode, false); err != nil {
				t.Fatal(err)
			}
			want := fill(0, 2<<20)
			copy(want[4096:], fill(0xaa, 512))
			if !bytes.Equal(get(t, d, 0, 2<<20), want) {
				t.Errorf("%s: content differs", mode)
			}
			closeImage(t, d)
			mustCheck(t, f, true)
			if f.data == nil && len(f.b) < size+1<<20 {
				t.Errorf("%s: the file has %d bytes, and had %d", mode, len(f.b), size)
			}
		}
	}
}

func TestEncryptionOptionsMustFitTheImage(t *testing.T) {
	aes := func(secret *string) *qapi.BlockdevQcow2Encryption {
		return &qapi.BlockdevQcow2Encryption{Format: "aes", AES: &qapi.QCryptoBlockOptionsQCow{KeySecret: secret}}
	}
	ofLUKS := func(secret *string) *qapi.BlockdevQcow2Encryption {
		return &qapi.BlockdevQcow2Encryption{Format: "luks", LUKS: &qapi.QCryptoBlockOptionsLUKS{KeySecret: secret}}
	}
	plain, luksImage, aesImage := newImage(t, 1<<20), newImage(t, 1<<20, encrypted), newImage(t, 1<<20, encryptedAES)
	for _, c := range []struct {
		f    *memFile
		e    *qapi.BlockdevQcow2Encryption
		want string
	}{
		{plain, ofLUKS(ptr("s")), "No encryption in image header, but options specified format 'luks'"},
		{luksImage, aes(ptr("s")), "Header reported 'luks' encryption format but options specify 'aes'"},
		{aesImage, ofLUKS(ptr("s")), "Header reported 'aes' encryption format but options specify 'luks'"},
		{luksImage, ofLUKS(nil), "Parameter 'encrypt.key-secret' is required for cipher"},
		{aesImage, aes(nil), "Parameter 'encrypt.key-secret' is required for cipher"},
		{luksImage, ofLUKS(ptr("n")), "Invalid password, cannot unlock any keyslot"},
		{luksImage, ofLUKS(ptr("none")), "No secret with id 'none'"},
	} {
		_, err := open(ctxb, testChildren{c.f, nil}, &qapi.BlockdevOptions{Qcow2: &qapi.BlockdevOptionsQcow2{Encrypt: c.e}}, false)
		if err == nil || err.Error() != c.want {
			t.Errorf("%v, not %q", err, c.want)
		}
	}
}

func TestHostileEncryptionHeaders(t *testing.T) {
	be := binary.BigEndian
	const ext = ourHeader + 8 // the first extension's data
	for _, c := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"length of the extension", func(b []byte) { be.PutUint32(b[ourHeader+4:], 8) }, "CRYPTO header extension size 8, but expected size 16"},
		{"place", func(b []byte) { be.PutUint64(b[ext:], 513) }, "Encryption header offset '513' is not a multiple of cluster size '65536'"},
		{"place beyond all files", func(b []byte) { be.PutUint64(b[ext:], 1<<63) }, "Encryption header at offset '9223372036854775808' of 2068480 bytes is out of bounds"},
		{"short", func(b []byte) { be.PutUint64(b[ext+8:], 500) }, "Request for data outside of extension header"},
		{"past the end", func(b []byte) { be.PutUint64(b[ext:], 1<<40) }, "Volume is not in LUKS format"},
		{"no method", func(b []byte) { be.PutUint32(b[fieldCryptMethod:], 0) }, "CRYPTO header extension only expected with LUKS encryption method"},
		{"no extension", func(b []byte) { be.PutUint32(b[ourHeader:], 0x12345678) }, "Missing CRYPTO header for crypt method 2"},
		{"odd size", func(b []byte) { b[fieldSize+7] = 1 }, "The size of an encrypted image must be a multiple of 512 bytes"},
	} {
		f := newImage(t, 1<<20, encrypted, func(o *qapi.BlockdevCreateOptionsQcow2) {
			o.Encrypt.LUKS.CipherAlg, o.Encrypt.LUKS.CipherMode = nil, nil
		})
		c.change(f.b)
		_, err := open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, false)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, not %q", c.name, err, c.want)
		}
	}
}

// free enters at once.
func free(_ context.Context, f func() error) error { return f() }

func TestAmendQcow2(t *testing.T) {
	amend := func(d *Driver, e *qapi.QCryptoBlockAmendOptions) string {
		err := d.Amend(ctxb, free, &qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: &qapi.BlockdevAmendOptionsQcow2{Encrypt: e}}, false)
		if err != nil {
			return err.Error()
		}
		return ""
	}
	add := &qapi.QCryptoBlockAmendOptions{Format: "luks", LUKS: &qapi.QCryptoBlockAmendOptionsLUKS{State: "active", NewSecret: ptr("n"), IterTime: ptr(int64(0))}}
	qcow := &qapi.QCryptoBlockAmendOptions{Format: "qcow"}
	f := newImage(t, 1<<20, encrypted)
	plain, aes, d := openImage(t, newImage(t, 1<<20), nil), openImage(t, newImage(t, 1<<20, encryptedAES), nil), openImage(t, f, nil)
	readOnly, err := open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		d    *Driver
		e    *qapi.QCryptoBlockAmendOptions
		want string
	}{
		{plain, nil, ""},
		{plain, add, "image is not encrypted, can't amend"},
		{aes, qcow, "Amend can't be used to change the qcow2 encryption format"},
		{aes, add, "Only LUKS encryption options can be amended for qcow2 with blockdev-amend"},
		{readOnly, add, "Could not read encryption header: Operation not permitted"},
		{d, add, ""},
	} {
		if got := amend(c.d, c.e); got != c.want {
			t.Errorf("%q, not %q", got, c.want)
		}
	}
	closeImage(t, d)
	mustCheck(t, f, true)
	o := &qapi.BlockdevQcow2Encryption{Format: "luks", LUKS: &qapi.QCryptoBlockOptionsLUKS{KeySecret: ptr("n")}}
	d, err = open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{Qcow2: &qapi.BlockdevOptionsQcow2{Encrypt: o}}, false)
	if err != nil {
		t.Fatal(err)
	}
	var info qapi.ImageInfo
	if err := d.ImageInfo(ctxb, &info); err != nil || info.Encrypted == nil || !*info.Encrypted || !info.FormatSpecific.Qcow2.Encrypt.LUKS.Slots[1].Active {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestEncryptedImageKeepsItsHeaderWhenTheBackingNameChanges(t *testing.T) {
	f := newImage(t, 1<<20, encrypted)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(0xbb, 512))
	if err := d.ChangeBackingFile(ctxb, "base.raw", "raw"); err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	d = openImage(t, f, nil)
	if !bytes.Equal(get(t, d, 0, 512), fill(0xbb, 512)) {
		t.Error("content differs")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

func TestOnlineCheckKnowsTheEncryptionHeader(t *testing.T) {
	f := newImage(t, 1<<20, encrypted)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(0xcc, 1<<16))
	flush(t, d)
	if res := inspect(t, d, blockgraph.CheckFixNone, 0); res.Leaks != 0 || res.Corruptions != 0 {
		t.Errorf("%+v", res)
	}
	closeImage(t, d)
}
