package frame

import "fmt"

// An ID names a method: its class in the upper 16 bits, and its number in the class.
type ID uint32

// Class is the class of the method.
func (id ID) Class() uint16 { return uint16(id >> 16) }

// Method is the number of the method in its class.
func (id ID) Method() uint16 { return uint16(id) }

// String is the method's name, such as "queue.declare".
func (id ID) String() string {
	if m := newMethod(id); m != nil {
		return m.name()
	}
	return fmt.Sprintf("method %d.%d", id.Class(), id.Method())
}

// The classes.
const (
	ClassConnection = 10
	ClassChannel    = 20
	ClassExchange   = 40
	ClassQueue      = 50
	ClassBasic      = 60
	ClassConfirm    = 85
	ClassTx         = 90
)
