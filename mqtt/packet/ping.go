package packet

// Pingreq is PINGREQ.
type Pingreq struct{}

// Type is PINGREQ.
func (*Pingreq) Type() Type { return PINGREQ }

// Append is Packet's.
func (*Pingreq) Append(dst []byte, _ Version, max int) ([]byte, error) {
	return appendEmpty(dst, PINGREQ, max)
}

// Pingresp is PINGRESP.
type Pingresp struct{}

// Type is PINGRESP.
func (*Pingresp) Type() Type { return PINGRESP }

// Append is Packet's.
func (*Pingresp) Append(dst []byte, _ Version, max int) ([]byte, error) {
	return appendEmpty(dst, PINGRESP, max)
}

func appendEmpty(dst []byte, t Type, max int) ([]byte, error) {
	if !fits(0, max) {
		return dst, ErrSize
	}
	return append(dst, byte(t)<<4, 0), nil
}
