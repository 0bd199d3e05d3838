package frame

import (
	"encoding/binary"
	"log/slog"
)

// A Method is a pointer to one of the structs of this package that are named for a
// class and a method, such as *QueueDeclare.
type Method interface {
	// ID is the method's name on the wire.
	ID() ID
	name() string
	// code reads or writes the method's fields.
	code(c coder) coder
}

// A Secret is a text that nobody reads in a log.
type Secret string

// String hides the secret.
func (Secret) String() string { return "[secret]" }

// GoString hides the secret.
func (Secret) GoString() string { return "[secret]" }

// LogValue hides the secret.
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// HasContent says whether a header frame and body frames come after m.
func HasContent(m Method) bool {
	switch m.(type) {
	case *BasicPublish, *BasicReturn, *BasicDeliver, *BasicGetOk:
		return true
	}
	return false
}

// DecodeMethod is the method that is the payload of a method frame. All of it is the
// caller's. An error is an *Error of the connection.
func DecodeMethod(payload []byte) (Method, error) {
	return decodeMethod(payload, nil, MaxEntries, newMethod)
}

func decodeMethod(payload []byte, before *recent, entries int, make func(ID) Method) (Method, error) {
	if len(payload) < 4 {
		return nil, ConnectionError(SyntaxError, "a method frame of %d bytes", len(payload))
	}
	id := ID(binary.BigEndian.Uint32(payload))
	m := make(id)
	if m == nil {
		e := ConnectionError(CommandInvalid, "there is no method %d of class %d", id.Method(), id.Class())
		e.Class, e.Method = id.Class(), id.Method()
		return nil, e
	}
	c := m.code(coder{in: payload[4:], what: m.name(), id: id, recent: before, entries: entries})
	c.done()
	if c.err != nil {
		return nil, c.err
	}
	return m, nil
}

// newMethod is a method to read into, nil if there is none of this name.
func newMethod(id ID) Method {
	switch id.Class() {
	case ClassConnection:
		return newConnection(id.Method())
	case ClassChannel:
		return newChannel(id.Method())
	case ClassExchange:
		return newExchange(id.Method())
	case ClassQueue:
		return newQueue(id.Method())
	case ClassBasic:
		return newBasic(id.Method())
	case ClassConfirm:
		return newConfirm(id.Method())
	case ClassTx:
		return newTx(id.Method())
	}
	return nil
}

func newConnection(method uint16) Method {
	switch method {
	case 10:
		return new(ConnectionStart)
	case 11:
		return new(ConnectionStartOk)
	case 20:
		return new(ConnectionSecure)
	case 21:
		return new(ConnectionSecureOk)
	case 30:
		return new(ConnectionTune)
	case 31:
		return new(ConnectionTuneOk)
	case 40:
		return new(ConnectionOpen)
	case 41:
		return new(ConnectionOpenOk)
	case 50:
		return new(ConnectionClose)
	case 51:
		return new(ConnectionCloseOk)
	case 60:
		return new(ConnectionBlocked)
	case 61:
		return new(ConnectionUnblocked)
	case 70:
		return new(ConnectionUpdateSecret)
	case 71:
		return new(ConnectionUpdateSecretOk)
	}
	return nil
}

func newChannel(method uint16) Method {
	switch method {
	case 10:
		return new(ChannelOpen)
	case 11:
		return new(ChannelOpenOk)
	case 20:
		return new(ChannelFlow)
	case 21:
		return new(ChannelFlowOk)
	case 40:
		return new(ChannelClose)
	case 41:
		return new(ChannelCloseOk)
	}
	return nil
}

func newExchange(method uint16) Method {
	switch method {
	case 10:
		return new(ExchangeDeclare)
	case 11:
		return new(ExchangeDeclareOk)
	case 20:
		return new(ExchangeDelete)
	case 21:
		return new(ExchangeDeleteOk)
	case 30:
		return new(ExchangeBind)
	case 31:
		return new(ExchangeBindOk)
	case 40:
		return new(ExchangeUnbind)
	case 51:
		return new(ExchangeUnbindOk)
	}
	return nil
}

func newQueue(method uint16) Method {
	switch method {
	case 10:
		return new(QueueDeclare)
	case 11:
		return new(QueueDeclareOk)
	case 20:
		return new(QueueBind)
	case 21:
		return new(QueueBindOk)
	case 30:
		return new(QueuePurge)
	case 31:
		return new(QueuePurgeOk)
	case 40:
		return new(QueueDelete)
	case 41:
		return new(QueueDeleteOk)
	case 50:
		return new(QueueUnbind)
	case 51:
		return new(QueueUnbindOk)
	}
	return nil
}

func newBasic(method uint16) Method {
	switch method {
	case 10:
		return new(BasicQos)
	case 11:
		return new(BasicQosOk)
	case 20:
		return new(BasicConsume)
	case 21:
		return new(BasicConsumeOk)
	case 30:
		return new(BasicCancel)
	case 31:
		return new(BasicCancelOk)
	case 40:
		return new(BasicPublish)
	case 50:
		return new(BasicReturn)
	case 60:
		return new(BasicDeliver)
	case 70:
		return new(BasicGet)
	case 71:
		return new(BasicGetOk)
	case 72:
		return new(BasicGetEmpty)
	case 80:
		return new(BasicAck)
	case 90:
		return new(BasicReject)
	case 100:
		return new(BasicRecoverAsync)
	case 110:
		return new(BasicRecover)
	case 111:
		return new(BasicRecoverOk)
	case 120:
		return new(BasicNack)
	}
	return nil
}

func newConfirm(method uint16) Method {
	switch method {
	case 10:
		return new(ConfirmSelect)
	case 11:
		return new(ConfirmSelectOk)
	}
	return nil
}

func newTx(method uint16) Method {
	switch method {
	case 10:
		return new(TxSelect)
	case 11:
		return new(TxSelectOk)
	case 20:
		return new(TxCommit)
	case 21:
		return new(TxCommitOk)
	case 30:
		return new(TxRollback)
	case 31:
		return new(TxRollbackOk)
	}
	return nil
}
