package qcow2

import (
	"context"
	"encoding/binary"

	"blockd/qapi"
)

// ImageInfo fills in the format's part of what queries tell. Any goroutine.
func (d *Driver) ImageInfo(ctx context.Context, info *qapi.ImageInfo) error {
	select {
	case d.headerTurn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	var incompatible, compatible uint64
	if d.h.version >= 3 {
		incompatible = binary.BigEndian.Uint64(d.head[fieldIncompatible:])
		compatible = d.h.compatible
	}
	dataName := d.ext.dataFile
	<-d.headerTurn
	cs := d.h.clusterSize
	info.ClusterSize = &cs
	dirty := incompatible&incompatDirty != 0
	info.DirtyFlag = &dirty
	q := &qapi.ImageInfoSpecificQCow2{Compat: "0.10", RefcountBits: 1 << d.h.refcountOrder, CompressionType: qapi.Qcow2CompressionTypeZlib}
	if list := d.bitmaps.infos.Load(); list != nil {
		q.Bitmaps = *list
	}
	if n, total := d.BitmapWaits(); n > 0 {
		ns := int64(total)
		q.XBitmapWaits, q.XBitmapWaitNs = &n, &ns
	}
	if d.h.external {
		if dataName != "" {
			q.DataFile = &dataName
		}
		raw := d.h.raw
		q.DataFileRaw = &raw
	}
	if d.h.version >= 3 {
		q.Compat = "1.1"
		lazy, corrupt, extended := compatible&compatLazyRefcounts != 0, incompatible&incompatCorrupt != 0 || d.broken.Load() && !d.alone.Load(), d.h.extended
		q.LazyRefcounts, q.Corrupt, q.ExtendedL2 = &lazy, &corrupt, &extended
		if d.h.compression == compressionZstd {
			q.CompressionType = qapi.Qcow2CompressionTypeZstd
		}
	}
	if c := d.crypt; c != nil {
		yes := true
		info.Encrypted = &yes
		q.Encrypt = &qapi.ImageInfoSpecificQCow2Encryption{Format: qapi.BlockdevQcow2EncryptionFormatAES}
		if c.volume != nil {
			q.Encrypt.Format, q.Encrypt.LUKS = qapi.BlockdevQcow2EncryptionFormatLUKS, c.volume.Info()
		}
	}
	info.FormatSpecific = &qapi.ImageInfoSpecific{Type: qapi.ImageInfoSpecificKindQcow2, Qcow2: q}
	return nil
}
