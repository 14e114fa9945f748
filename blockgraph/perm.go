package blockgraph

import "strings"

// Perm is a set of permissions on a node, with the field's bit values, which
// are also the numbers of the file lock bytes.
type Perm uint8

const (
	// PermConsistentRead: the user needs to read data that makes sense.
	PermConsistentRead Perm = 1 << iota
	// PermWrite: the user changes visible data.
	PermWrite
	// PermWriteUnchanged: the user writes without changing visible data.
	PermWriteUnchanged
	// PermResize: the user changes the node's length.
	PermResize

	// PermAll has every permission.
	PermAll = PermConsistentRead | PermWrite | PermWriteUnchanged | PermResize
)

var permNames = [...]string{"consistent read", "write", "write unchanged", "resize"}

// String lists the permissions as the field's error texts do.
func (p Perm) String() string {
	var names []string
	for i, name := range permNames {
		if p&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// Role says what a parent uses a child for (the field: BdrvChildRole).
type Role uint8

const (
	// RoleData: the child holds guest data.
	RoleData Role = 1 << iota
	// RoleMetadata: the child holds metadata of the parent's format.
	RoleMetadata
	// RoleFiltered: the parent is a filter of this child.
	RoleFiltered
	// RoleCOW: the child is the backing file.
	RoleCOW
	// RolePrimary: the child that the parent is mostly about.
	RolePrimary
)

// DefaultChildPerms returns what a parent node needs from and shares on a
// child of the given role, when its own users together need perm and share
// shared. writable says whether the parent node may write. It implements the
// field's default rules for filters, backing files and storage.
func DefaultChildPerms(role Role, writable bool, perm, shared Perm) (Perm, Perm) {
	switch {
	case role&RoleFiltered != 0:
		return filterPerms(perm, shared)
	case role&RoleCOW != 0:
		return cowPerms(perm, shared)
	default:
		return storagePerms(role, writable, perm, shared)
	}
}

func filterPerms(perm, shared Perm) (Perm, Perm) {
	return perm, shared | PermWriteUnchanged
}

// cowPerms: a backing file is only read, and only if somebody reads the
// overlay; others may change it only as far as the overlay's users tolerate
// changing data.
func cowPerms(perm, shared Perm) (Perm, Perm) {
	if shared&PermWrite != 0 {
		shared = PermWrite | PermResize
	} else {
		shared = 0
	}
	return perm & PermConsistentRead, shared | PermConsistentRead | PermWriteUnchanged
}

func storagePerms(role Role, writable bool, perm, shared Perm) (Perm, Perm) {
	if role&RoleMetadata != 0 {
		// Metadata may be written at any time, users or not, and nobody else
		// may touch it.
		if writable {
			perm |= PermWrite | PermResize
		}
		perm |= PermConsistentRead
		shared &^= PermWrite | PermResize
	}
	if role&RoleData != 0 {
		// An unchanged write of the guest's data may allocate, and a write may
		// grow the file.
		if perm&PermWriteUnchanged != 0 {
			perm |= PermWrite
		}
		if perm&PermWrite != 0 {
			perm |= PermResize
		}
		shared &^= PermResize
	}
	return perm, shared
}
