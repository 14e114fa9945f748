package qapi

import "fmt"

// DecodeFlat is Decode for the options in a `json:` file name, which the field
// takes as a flat list: members of members may be written as objects or as keys
// with dots, list elements as keys with numbers, and a string does for any
// scalar.
func DecodeFlat(o *Object, into any) error {
	v, err := nest(o)
	if err != nil {
		return err
	}
	return decodeInto(&decoder{flat: true}, v, into)
}

// Nest returns a flat list as the objects that it stands for, for DecodeFlat.
func Nest(o *Object) (*Object, error) {
	v, err := nest(o)
	if err != nil {
		return nil, err
	}
	nested, ok := v.(*Object)
	if !ok {
		return nil, Errorf("Parameters must not be a list")
	}
	return nested, nil
}

func nest(o *Object) (any, error) {
	root := &Object{}
	if err := putFlat(root, "", o); err != nil {
		return nil, err
	}
	return listify(root, "")
}

// putFlat stores the leaves of v, whose path is key, in root.
func putFlat(root *Object, key string, v any) error {
	under := key
	if under != "" {
		under += "."
	}
	switch v := v.(type) {
	case *Object:
		for k, m := range v.All() {
			if err := putFlat(root, under+k, m); err != nil {
				return err
			}
		}
		return nil
	case []any:
		for i, m := range v {
			if err := putFlat(root, fmt.Sprint(under, i), m); err != nil {
				return err
			}
		}
		if len(v) > 0 {
			return nil
		}
	}
	if err := checkKey(key); err != nil {
		return err
	}
	return keyvalPut(root, key, v)
}
