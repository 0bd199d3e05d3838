package signed

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/signing"
)

const (
	// journalStream has which signatures were used, for a while longer than they are
	// good, and journalPrefix is before the account in its subjects.
	journalStream, journalPrefix = "SIGNING", "signing."
	journalAge                   = 2 * (window + ahead)
	// journalTimeout bounds each request to the engine.
	journalTimeout = 3 * time.Second
	// useSize is that of a use in a record.
	useSize = len(signing.Use{}.ID) + len(signing.Use{}.Key)

	// The engine's error codes that the client has no names for.
	noPeers             jetstream.ErrorCode = 10005 // not enough nodes
	replicasNeedCluster jetstream.ErrorCode = 10074 // and the engine is not in one
)

// journal is what was used in an account, in memory and in a stream. Each write expects
// the one before: of two nodes that both believe to hold the lease one cannot write. It
// belongs to one goroutine.
type journal struct {
	js      jetstream.JetStream
	stream  jetstream.Stream
	subject string
	memory  *signing.Memory
	seq     uint64    // of the last record
	wrote   time.Time // when that was written
	since   time.Time // it knows all that was used of what was signed since
}

// openJournal reads what was used, and shuts out whoever wrote before.
func openJournal(ctx context.Context, js jetstream.JetStream, account string) (*journal, error) {
	j := &journal{js: js, subject: journalPrefix + account, memory: signing.NewMemory(0, window+ahead)}
	if err := j.open(ctx); err != nil {
		return nil, fmt.Errorf("opening the journal of signatures: %w", err)
	}
	if err := j.last(ctx); err != nil {
		return nil, fmt.Errorf("opening the journal of signatures: %w", err)
	}
	if err := j.append(ctx, nil); err != nil {
		return nil, fmt.Errorf("taking over the journal of signatures: %w", err)
	}
	if err := j.load(ctx); err != nil {
		return nil, fmt.Errorf("reading the journal of signatures: %w", err)
	}
	return j, nil
}

// open finds the stream, or makes it: on three nodes where there are three.
func (j *journal) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	stream, err := j.js.Stream(ctx, journalStream)
	for _, replicas := range []int{3, 1} {
		var refusal *jetstream.APIError
		lacking := errors.As(err, &refusal) && (refusal.ErrorCode == noPeers || refusal.ErrorCode == replicasNeedCluster)
		if !errors.Is(err, jetstream.ErrStreamNotFound) && !lacking {
			break
		}
		stream, err = j.js.CreateStream(ctx, jetstream.StreamConfig{
			Name: journalStream, Description: "which signatures of messages were used", Subjects: []string{journalPrefix + "*"},
			Storage: jetstream.FileStorage, Replicas: replicas, MaxAge: journalAge, Metadata: map[string]string{"fleetbus.replicas": "auto"},
		})
	}
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		stream, err = j.js.Stream(ctx, journalStream)
	}
	if err != nil {
		return err
	}
	j.stream = stream
	// Of what was signed before there was one, something may have been used.
	j.since = stream.CachedInfo().Created.Add(ahead)
	return nil
}

// last finds the last record.
func (j *journal) last(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	msg, err := j.stream.GetLastMsgForSubject(ctx, j.subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		j.seq = 0
	case err != nil:
		return err
	default:
		j.seq = msg.Sequence
	}
	return nil
}

// append writes a record after the last one.
func (j *journal) append(ctx context.Context, record []byte) error {
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	msg := &nats.Msg{Subject: j.subject, Data: record, Header: nats.Header{jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(j.seq, 10)}}}
	ack, err := j.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
	if err != nil {
		return err
	}
	j.seq, j.wrote = ack.Sequence, time.Now()
	return nil
}

// load reads all records up to the last one.
func (j *journal) load(ctx context.Context) error {
	consumer, err := j.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{FilterSubjects: []string{j.subject}})
	if err != nil {
		return err
	}
	for {
		msg, err := consumer.Next(jetstream.FetchMaxWait(journalTimeout))
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		for record := msg.Data(); len(record) >= useSize; record = record[useSize:] {
			var u signing.Use
			copy(u.Key[:], record[copy(u.ID[:], record):])
			if err := j.memory.Use(u, time.Now()); errors.Is(err, signing.ErrFull) {
				return err
			}
		}
		if meta.Sequence.Stream >= j.seq {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// write writes down what is used now. After an error it may be written or not.
func (j *journal) write(ctx context.Context, uses []signing.Use) error {
	if len(uses) == 0 {
		return nil
	}
	// The last record may have ended: then there is none to expect. Another node's would
	// not have.
	if time.Since(j.wrote) > journalAge/2 {
		expected := j.seq
		if err := j.last(ctx); err != nil {
			return fmt.Errorf("writing the journal of signatures: %w", err)
		}
		if j.seq > expected {
			return errors.New("writing the journal of signatures: another node does")
		}
	}
	record := make([]byte, 0, len(uses)*useSize)
	for _, u := range uses {
		record = append(append(record, u.ID[:]...), u.Key[:]...)
	}
	if err := j.append(ctx, record); err != nil {
		return fmt.Errorf("writing the journal of signatures: %w", err)
	}
	return nil
}
