package frame

// ConfirmSelect has a channel confirm what is published.
type ConfirmSelect struct {
	NoWait bool
}

// ID implements Method.
func (*ConfirmSelect) ID() ID       { return ClassConfirm<<16 | 10 }
func (*ConfirmSelect) name() string { return "confirm.select" }
func (m *ConfirmSelect) code(c coder) coder {
	c.bits(&m.NoWait)
	return c
}

// ConfirmSelectOk answers ConfirmSelect.
type ConfirmSelectOk struct{}

// ID implements Method.
func (*ConfirmSelectOk) ID() ID             { return ClassConfirm<<16 | 11 }
func (*ConfirmSelectOk) name() string       { return "confirm.select-ok" }
func (*ConfirmSelectOk) code(c coder) coder { return c }

// TxSelect makes a channel transactional.
type TxSelect struct{}

// ID implements Method.
func (*TxSelect) ID() ID             { return ClassTx<<16 | 10 }
func (*TxSelect) name() string       { return "tx.select" }
func (*TxSelect) code(c coder) coder { return c }

// TxSelectOk answers TxSelect.
type TxSelectOk struct{}

// ID implements Method.
func (*TxSelectOk) ID() ID             { return ClassTx<<16 | 11 }
func (*TxSelectOk) name() string       { return "tx.select-ok" }
func (*TxSelectOk) code(c coder) coder { return c }

// TxCommit ends a transaction.
type TxCommit struct{}

// ID implements Method.
func (*TxCommit) ID() ID             { return ClassTx<<16 | 20 }
func (*TxCommit) name() string       { return "tx.commit" }
func (*TxCommit) code(c coder) coder { return c }

// TxCommitOk answers TxCommit.
type TxCommitOk struct{}

// ID implements Method.
func (*TxCommitOk) ID() ID             { return ClassTx<<16 | 21 }
func (*TxCommitOk) name() string       { return "tx.commit-ok" }
func (*TxCommitOk) code(c coder) coder { return c }

// TxRollback drops a transaction.
type TxRollback struct{}

// ID implements Method.
func (*TxRollback) ID() ID             { return ClassTx<<16 | 30 }
func (*TxRollback) name() string       { return "tx.rollback" }
func (*TxRollback) code(c coder) coder { return c }

// TxRollbackOk answers TxRollback.
type TxRollbackOk struct{}

// ID implements Method.
func (*TxRollbackOk) ID() ID             { return ClassTx<<16 | 31 }
func (*TxRollbackOk) name() string       { return "tx.rollback-ok" }
func (*TxRollbackOk) code(c coder) coder { return c }
