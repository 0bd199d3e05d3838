package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
)

// TestFleet runs the commands against an engine.
func TestFleet(t *testing.T) {
	f := newTestFleet(t)
	t.Run("Administer", func(t *testing.T) { testAdminister(t, f) })
	t.Run("Credentials", func(t *testing.T) { testCredentials(t, f) })
	t.Run("Status", func(t *testing.T) { testStatus(t, f) })
	t.Run("Ping", func(t *testing.T) { testPing(t, f) })
	t.Run("Top", func(t *testing.T) { testTop(t, f) })
	t.Run("Refused", func(t *testing.T) { testRefused(t, f) })
	t.Run("Messages", func(t *testing.T) { testMessages(t, f) })
	t.Run("Streams", func(t *testing.T) { testStreams(t, f) })
}

// testSecretKey is the key that secrets are sealed to.
func testSecretKey(t *testing.T) string {
	t.Helper()
	authority, _, err := identity.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return must[string](t)(authority.SecretPublic())
}

func spreadOver(closed int, missing ...string) admin.Spread {
	return admin.Spread{
		Nodes:   []admin.Applied{{Node: "n1", Closed: closed}, {Node: "n2"}},
		Missing: missing, Took: 12 * time.Millisecond, Changed: true,
	}
}

func testAdminister(t *testing.T, f *testFleet) {
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	acme := admin.AccountInfo{Account: identity.Account{Name: "acme", ID: "1f", Limits: identity.Limits{Storage: 10 << 30, Streams: 7}, Created: created},
		Users: 2, Connections: 1, Streams: 3, Bytes: 2048}
	alice := identity.User{Account: "acme", Name: "alice", Role: "client", Created: created,
		Keys: []identity.UserKey{{Public: "UABC"}}, Certificates: []identity.UserCertificate{{Serial: "0a"}}, Password: "$argon2id$hash"}
	role := identity.Role{Name: "sensor", Permissions: identity.Permissions{Publish: identity.Rule{Allow: []string{"a.>"}, Deny: []string{"a.b"}}}, Expires: time.Hour}
	token := identity.Token{ID: "0123", Kind: identity.KindUser, Account: "acme", Name: "alice", Expires: time.Now().Add(time.Hour)}
	f.answerWith(t, "account.info", acme)
	f.answerWith(t, "account.ls", []admin.AccountInfo{acme})
	f.answerWith(t, "account.add", spreadOver(0))
	f.answerWith(t, "account.rm", spreadOver(1))
	exported := identity.Export{Party: identity.Party{Account: "acme"}, Subject: "registration.>", To: []identity.Consent{
		{Party: identity.Party{Account: "ops"}}, {Party: identity.Party{Account: "lost"}, Revoked: created}}}
	f.answerWith(t, "export.ls", []admin.ExportInfo{{Export: exported, Importers: []string{"ops"}}})
	f.answerWith(t, "export.add", spreadOver(0))
	f.answerWith(t, "export.rm", spreadOver(0))
	f.answerWith(t, "import.ls", []admin.ImportInfo{{State: admin.ImportWaiting, Import: identity.Import{
		Party: identity.Party{Account: "ops"}, From: identity.Party{Account: "acme"}, Subject: "registration.>", As: "fleet.acme.>"}}})
	f.answerWith(t, "import.add", spreadOver(0))
	f.answerWith(t, "import.rm", spreadOver(0))
	f.answerWith(t, "adapter.add", spreadOver(0))
	f.answerWith(t, "adapter.rm", spreadOver(0))
	f.answerWith(t, "adapter.ls", []admin.AdapterInfo{{
		Adapter: identity.Adapter{Name: "reg", From: []identity.Party{{Account: "acme"}, {Account: "beta"}}, Subject: "registration.>", To: identity.Party{Account: "ops"}, Stream: "REG"},
		Nodes:   []admin.AdapterCount{{Node: "n1", Received: 5, Stored: 3, Refused: 1, Pending: 1}, {Node: "n2", Received: 1, Stored: 1}}, Waiting: []string{"beta"}}})
	f.answerWith(t, "user.ls", []identity.User{alice})
	f.answerWith(t, "user.info", admin.UserInfo{User: alice, Connections: []admin.Connection{{Node: "n1", ID: 7, Remote: "10.0.0.1:5"}, {Node: "n2", ID: 8}}})
	f.answerWith(t, "user.rm", spreadOver(2))
	f.answerWith(t, "user.deny", spreadOver(2, "n3"))
	f.answerWith(t, "user.allow", admin.Spread{Nodes: []admin.Applied{{Node: "n1"}}})
	f.answerWith(t, "role.ls", append(identity.BuiltinRoles(), role))
	f.answerWith(t, "role.add", spreadOver(0))
	f.answerWith(t, "role.rm", admin.Errorf(admin.Conflict, "fleetbus user ls", "2 users have it"))
	f.answerWith(t, "token.add", admin.TokenReply{Token: token, Text: "fb1.x.y.z", Join: "n1.example.net:4222"})
	f.answerWith(t, "token.ls", []identity.Token{token})
	f.answerWith(t, "token.rm", spreadOver(0))
	keys := []admin.Key{
		{Name: "operator", Signs: "terms", Made: created, Old: []admin.OldKey{}},
		{Name: "role", Account: "acme", Role: "client", Signs: "files", Generation: "1c90a5f2", Made: created, Old: []admin.OldKey{
			{Until: created.Add(time.Hour), Cut: []string{"acme/bob", "acme/carl", "acme/dan", "acme/alice"}}, {Generation: "07", Until: created.Add(time.Minute), Cut: []string{"acme/bob"}}}},
	}
	f.answerWith(t, "key.ls", admin.Keys{Keys: keys})
	f.answerWith(t, "key.rotate", admin.KeyReply{Spread: spreadOver(0), Keys: keys[1:]})
	f.answerWith(t, "status", testFleetStatus())
	f.answerWith(t, "source.setup", admin.SourceSetup{SecretPublic: testSecretKey(t), Types: []string{"postgres", "sqlite"}})
	f.answerWith(t, "source.add", spreadOver(0))
	f.answerWith(t, "source.rm", spreadOver(0))
	f.answerWith(t, "source.ls", []admin.SourceInfo{{Source: admin.Source{Account: "acme", Name: "orders", Type: "postgres", Tables: []string{"carts"}},
		State: admin.SourceFailed, Runner: "n2", Error: "reaching the database: it is down", Announced: 12,
		Progress: change.Progress{Position: "0/16B3748", Version: 1, Lag: 1500 * time.Microsecond, Retained: 64 << 20}}})
	f.answerWith(t, "node.rm", spreadOver(0))
	f.answerWith(t, "node.renew", []admin.Renewed{{Node: "n1", NotAfter: created}, {Node: "n2", Error: "no answer"}})

	for _, c := range []struct {
		line   string
		code   command.ExitCode
		stdout string // a line that is there
		stderr string
	}{
		{line: "account add acme --storage 20GiB", stdout: "account acme is live on 2 of 2 nodes (12 ms)"},
		{line: "account add acme --dry-run", stdout: "would set the limits of account acme"},
		{line: "account ls", stdout: "acme  2      1            3        2KiB    10GiB    2026-01-02T03:04:05Z"},
		{line: "account ls -o jsonl", stdout: `"name":"acme"`},
		{line: "account info acme", stdout: "streams         3 of 7"},
		{line: "account rm acme", code: command.ExitUsage, stderr: "fix: add --yes"},
		{line: "account rm acme --dry-run", stdout: "would remove account acme with 2 users and 3 streams (2KiB), and close 1 connection"},
		{line: "account rm acme --yes", stdout: "account acme is removed: 1 connection closed on 2 of 2 nodes (12 ms)"},
		{line: "account export acme registration.> --to ops,beta", stdout: "registration.> of account acme is exported to ops, beta on 2 of 2 nodes (12 ms)"},
		{line: "account export acme registration.> --public --dry-run", stdout: "would let everybody have registration.> of account acme"},
		{line: "account export acme registration.>", code: command.ExitUsage, stderr: "fix: --to ACCOUNT, or --public"},
		{line: "account export acme $SYS.> --to ops", code: command.ExitUsage, stderr: "such subjects stay in their account"},
		{line: "account export ls", stdout: "acme     registration.>  messages  ops  ops"},
		{line: "account export rm acme registration.> --dry-run", stdout: "would take registration.> of account acme back from all, which ops imports now"},
		{line: "account export rm acme registration.> --to ops --yes", stdout: "registration.> of account acme is taken back from ops on 2 of 2"},
		{line: "account export rm acme registration.> --to ops", code: command.ExitUsage, stderr: "fix: add --yes"},
		{line: "account export rm acme other --yes", code: command.ExitNotFound, stderr: "fix: fleetbus account export ls acme"},
		{line: "account import ops acme:registration.> --as fleet.acme.>", stdout: "account ops has registration.> of account acme as fleet.acme.> on 2 of 2"},
		{line: "account import ops acme:registration.> --dry-run", stdout: "would let account ops have registration.> of account acme as registration.>"},
		{line: "account import ops registration.>", code: command.ExitUsage, stderr: "fix: write it like acme:registration.>"},
		{line: "account import ls ops -o jsonl", stdout: `"state":"waiting"`},
		{line: "account import ls ops", stdout: "ops      fleet.acme.>  messages  acme:registration.>  waiting"},
		{line: "account import rm ops fleet.acme.> --yes", stdout: "account ops has fleet.acme.> no more on 2 of 2 nodes (12 ms)"},
		{line: "account import rm ops fleet.acme.> --dry-run", stdout: "would end the import of acme:registration.> into account ops as fleet.acme.>"},
		{line: "account import rm ops other --yes", code: command.ExitNotFound, stderr: "fix: fleetbus account import ls ops"},
		{line: "adapter add reg --from acme,beta --subject registration.> --to ops --stream REG", stdout: "adapter reg is live on 2 of 2 nodes (12 ms)"},
		{line: "adapter add reg --from acme --subject registration.> --to ops --stream REG --dry-run", stdout: "would write registration.> of acme to stream REG of account ops"},
		{line: "adapter add reg --from acme", code: command.ExitUsage, stderr: "fix: --from ACCOUNT --subject SUBJECT"},
		{line: "adapter add reg --from acme --subject $JS.> --to ops --stream REG", code: command.ExitUsage, stderr: "such subjects stay in their account"},
		{line: "adapter ls", stdout: "reg   acme, beta  registration.>  ops/REG  4       1"},
		{line: "adapter status reg", stdout: "n1    5         3       1        1"},
		{line: "adapter status reg -o json", stdout: `"received": 5`},
		{line: "adapter status none", code: command.ExitNotFound, stderr: "fix: fleetbus adapter ls"},
		{line: "adapter rm reg --dry-run", stdout: "would end adapter reg, by which acme, beta reaches stream REG of account ops"},
		{line: "adapter rm reg --yes", stdout: "adapter reg is removed on 2 of 2 nodes (12 ms)"},
		{line: "user ls acme", stdout: "acme/alice  client  allowed  1      1             2026-01-02T03:04:05Z"},
		{line: "user info acme/alice", stdout: "n1    7           -     10.0.0.1:5  -"},
		{line: "user info acme/alice -o json", stdout: `"node": "n1"`},
		{line: "user rm acme/alice --dry-run -o json", stdout: `"would": "remove user acme/alice, and close 2 connections"`},
		{line: "user rm acme/alice -y", stdout: "acme/alice is removed: 2 connections closed"},
		{line: "user deny acme/alice", code: command.ExitPartial, stdout: "acme/alice is denied: 2 connections closed on 2 of 3 nodes (12 ms)", stderr: "error: reaching every node: no answer from n3"},
		{line: "user deny acme/alice --dry-run", stdout: "would deny acme/alice, and close 2 connections"},
		{line: "user allow acme/alice", stdout: "acme/alice is allowed on 1 of 1 nodes (0, nothing changed)"},
		{line: "user allow acme/alice --dry-run", stdout: "would allow acme/alice, who is allowed"},
		{line: "role ls", stdout: "a.> but a.b"},
		{line: "role info sensor", stdout: "publish        a.> but a.b"},
		{line: "role info nobody", code: command.ExitNotFound, stderr: "fix: fleetbus role ls"},
		{line: "role add sensor --publish a.> --reply-max 2 --payload 64KiB --expires never", stdout: "role sensor is live on 2 of 2 nodes (12 ms)"},
		{line: "role add new --dry-run", stdout: "would make role new"},
		{line: "role add new --publish a..b", code: command.ExitUsage, stderr: "has an empty token"},
		{line: "role add new --network 10.0.0.0", code: command.ExitUsage, stderr: "checking networks"},
		{line: "role add client", code: command.ExitConflict, stderr: "it is built in"},
		{line: "role rm sensor --yes", code: command.ExitConflict, stderr: `error: removing role "sensor": 2 users have it`},
		{line: "role rm nobody --yes", code: command.ExitNotFound},
		{line: "role rm sensor --dry-run", stdout: "would remove role sensor"},
		{line: "token add user --for acme/alice", stdout: "fb1.x.y.z", stderr: "fleetbus join n1.example.net:4222 --as user --out alice.creds --token fb1.x.y.z"},
		{line: "token add node --dry-run --life 2h", stdout: "would make a token for a node, for 2h0m"},
		{line: "token ls", stdout: "0123  user  acme/alice  open"},
		{line: "token rm 0123 --yes", stdout: "token 0123 is revoked on 2 of 2 nodes (12 ms)"},
		{line: "token rm 0123 --dry-run", stdout: "would revoke token 0123, which is open"},
		{line: "token rm 9", code: command.ExitNotFound},
		{line: "key ls", stdout: "acme/alice, acme/bob, acme/carl and 1 more"},
		{line: "key rotate role acme/client --keep 2h", stdout: "the key of role acme/client is new on 2 of 2 nodes (12 ms)", stderr: "cut off then, if not renewed: acme/alice, acme/bob, acme/carl, acme/dan"},
		{line: "key rotate account acme --dry-run", stdout: "would make a new key of account acme; the old one is good for 1d0h more"},
		{line: "key rotate routes --now", code: command.ExitUsage, stderr: "end the old one now, and cut off who depends on it"},
		{line: "key rotate role acme", code: command.ExitUsage, stderr: "fix: write it as ACCOUNT/ROLE"},
		{line: "key rotate routes acme", code: command.ExitUsage, stderr: "takes no name"},
		{line: "key rotate account", code: command.ExitUsage, stderr: "takes a name"},
		{line: "key rotate ledger", code: command.ExitUsage, stderr: "is no key"},
		{line: "key rotate routes --keep never", code: command.ExitUsage, stderr: "the old key has to end"},
		{line: "key rotate operator", code: command.ExitUsage, stderr: "--offline DIR"},
		{line: "node ls", stdout: "n1    up       cannot reach n3  leader"},
		{line: "node rm n3 --dry-run", stdout: "would remove node n3, which is down, from fleet test"},
		{line: "node rm n3 --yes --force", stdout: "node n3 is removed on 2 of 2 nodes (12 ms)"},
		{line: "node rm n9 --yes", code: command.ExitNotFound},
		{line: "node renew", code: command.ExitPartial, stdout: "n2    -                     -", stderr: "1 of 2 nodes failed"},
		{line: "change source ls", stdout: "acme/orders  postgres  failed  n2    0/16B3748  1.5ms  12         carts"},
		{line: "change source status acme/orders", stdout: "log kept for it  64MiB"},
		{line: "change source status acme/none", code: command.ExitNotFound, stderr: "fix: fleetbus change source ls"},
		{line: "change source add acme/new --type postgres --file /db --dry-run", stdout: "would announce the changes of a postgres database in account acme, as new"},
		{line: "change source add acme/new --type postgres --file /db", stdout: "source acme/new is known on 2 of 2 nodes (12 ms)"},
		{line: "change source add acme/new --type oracle --file /db", code: command.ExitUsage, stderr: "fix: --type postgres or sqlite"},
		{line: "change source add acme/new --type postgres", code: command.ExitUsage, stderr: "fix: --dsn-file FILE"},
		{line: "change source add acme/new --type sqlite --file app.db", code: command.ExitUsage, stderr: "not a whole path"},
		{line: "change source add acme --type sqlite --file /db", code: command.ExitUsage, stderr: "fix: write it like acme/orders"},
		{line: "change source rm acme/orders --dry-run", stdout: "would end the announcements of source acme/orders, which is failed"},
		{line: "change source rm acme/orders --yes", stdout: "source acme/orders is removed on 2 of 2 nodes (12 ms)"},
		{line: "node renew n1 --dry-run", stdout: "would renew the certificates of n1"},
	} {
		t.Run(c.line, func(t *testing.T) {
			code, stdout, stderr := f.run(t, "", nil, strings.Fields(c.line)...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
			}
			if strings.Contains(stdout, "argon2id") {
				t.Error("a hash of a password is shown")
			}
		})
	}
	// What is not named stays.
	if got := asked[admin.AccountRequest](t, f, "account.add").Limits; got != (identity.Limits{Storage: 20 << 30, Streams: 7}) {
		t.Errorf("limits %+v", got)
	}
	got := asked[identity.Role](t, f, "role.add")
	if got.Expires != 0 || got.Limits.Payload != 64<<10 || got.Permissions.Replies.Max != 2 || got.Permissions.Publish.Deny[0] != "a.b" {
		t.Errorf("role %+v", got)
	}
	if got := asked[admin.KeyRequest](t, f, "key.rotate"); got.Known != "1c90a5f2" || got.Keep != 2*time.Hour || got.Role != "client" {
		t.Errorf("key %+v", got)
	}
	if got := asked[admin.TokenRequest](t, f, "token.add"); got.Account != "acme" || got.Name != "alice" || got.Life != 24*time.Hour {
		t.Errorf("token %+v", got)
	}
	if got := asked[admin.RemoveNodeRequest](t, f, "node.rm"); got.Name != "n3" || !got.Force {
		t.Errorf("node %+v", got)
	}
}

func testCredentials(t *testing.T, f *testFleet) {
	t.Chdir(t.TempDir())
	f.answerWith(t, "user.info", admin.UserInfo{User: identity.User{Account: "acme", Name: "alice"}})
	reply := admin.UserReply{
		Spread: spreadOver(0), User: identity.User{Account: "acme", Name: "alice", Role: "client"},
		CA: string(f.authority.ClientsPEM()), Chain: "chain\n",
		Servers: []string{"n1.example.net:4222"}, Expires: time.Now().Add(time.Hour),
	}
	f.answerBy("user.add", func(data []byte) admin.Reply {
		var request admin.UserRequest
		err := json.Unmarshal(data, &request)
		answer := reply
		if err == nil && request.Key != "" {
			answer.JWT, err = f.userJWT("acme", identity.RoleClient, request.Key)
		}
		encoded, encodeErr := json.Marshal(answer)
		if err = errors.Join(err, encodeErr); err != nil {
			return admin.Reply{Error: admin.Errorf(admin.Failed, "", "%v", err)}
		}
		return admin.Reply{Data: encoded}
	})

	code, stdout, stderr := f.run(t, "", nil, "user", "add", "acme/alice", "-o", "creds", "--expires", "30d")
	if code != command.ExitOK || !strings.HasPrefix(stdout, "-----BEGIN NATS USER JWT-----") || !strings.Contains(stderr, "nats --server tls://n1.example.net:4222 --creds alice.creds") {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	pair, err := jwt.ParseDecoratedUserNKey([]byte(stdout))
	if err != nil {
		t.Fatal(err)
	}
	request := asked[admin.UserRequest](t, f, "user.add")
	if public, _ := pair.PublicKey(); request.Key != public || request.Expires != 720*time.Hour || strings.Contains(string(f.requests["user.add"]), `"SU`) {
		t.Errorf("request %+v", request)
	}

	code, stdout, stderr = f.run(t, "correct horse battery\n", nil, "user", "add", "acme/alice",
		"--out", "a.creds", "--cert", "a", "--ca-out", "ca.pem", "--password-file", "-")
	if code != command.ExitOK || !strings.Contains(stdout, "acme/alice") || !strings.Contains(stderr, "--creds a.creds --tlsca a-ca.pem") {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	for name, mode := range map[string]os.FileMode{"a.creds": 0o600, "a.key": 0o600, "a.crt": 0o644, "a-ca.pem": 0o644, "ca.pem": 0o644} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	request = asked[admin.UserRequest](t, f, "user.add")
	if identity.VerifyPassword(request.Password, "correct horse battery") != nil || !strings.Contains(request.CSR, "CERTIFICATE REQUEST") {
		t.Errorf("request %+v", request)
	}

	// Nothing is written over, unless it is wanted.
	if code, _, _ = f.run(t, "", nil, "user", "add", "acme/alice", "--out", "a.creds"); code != command.ExitConflict {
		t.Errorf("exit code %d, not %d", code, command.ExitConflict)
	}
	if code, _, _ = f.run(t, "", nil, "user", "add", "acme/alice", "--out", "a.creds", "--yes"); code != command.ExitOK {
		t.Errorf("exit code %d with --yes", code)
	}
	if code, stdout, _ = f.run(t, "", nil, "user", "add", "acme/alice", "--out", "b.creds", "--dry-run"); code != command.ExitOK || !strings.Contains(stdout, "write b.creds") {
		t.Errorf("exit code %d, %s", code, stdout)
	}

	// Renewal keeps the key.
	before := request.Key
	code, _, stderr = f.run(t, "", nil, "user", "renew", "acme/alice", "--out", "a.creds", "--cert", "a")
	request = asked[admin.UserRequest](t, f, "user.add")
	if code != command.ExitOK || request.Key == "" || request.Key == before || request.CSR == "" || !strings.Contains(stderr, "wrote a.creds") {
		t.Errorf("exit code %d, request %+v, %s", code, request, stderr)
	}
	data, err := os.ReadFile("a.creds")
	if err != nil {
		t.Fatal(err)
	}
	if pair, err = jwt.ParseDecoratedUserNKey(data); err != nil {
		t.Fatal(err)
	}
	if public, _ := pair.PublicKey(); public != request.Key {
		t.Errorf("the key in the file is %s, the one asked for %s", public, request.Key)
	}

	// A certificate of another authority is registered without what follows it.
	if err := os.WriteFile("own.pem", append(f.authority.ClientsPEM(), "SECRET"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr = f.run(t, "", nil, "user", "add", "acme/alice", "--cert-register", "own.pem"); code != command.ExitOK {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if request = asked[admin.UserRequest](t, f, "user.add"); request.Certificate != string(f.authority.ClientsPEM()) {
		t.Errorf("certificate %q", request.Certificate)
	}
	if code, _, _ = f.run(t, "", nil, "user", "add", "acme/alice", "--cert-register", "a.creds"); code != command.ExitUsage {
		t.Errorf("exit code %d for what is no certificate", code)
	}

	// A user alone, and how to go on.
	if code, stdout, stderr = f.run(t, "", nil, "user", "add", "acme/alice", "-o", "json"); code != command.ExitOK || !json.Valid([]byte(stdout)) || !strings.Contains(stderr, "--out alice.creds") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}

func testFleetStatus() admin.Status {
	finding := doctor.Finding{Code: "CERTIFICATE-EXPIRES", Severity: doctor.Warning, Subject: "n2", Text: "soon", Fix: "fleetbus node renew n2"}
	return admin.Status{
		Fleet: "test", Node: "n1", Leader: "n1", Survives: 0, Sequence: 42, Answered: 2, Quorum: 3,
		Nodes: []admin.NodeInfo{
			{Node: identity.Node{Name: "n1", Version: "v1"}, State: "up", Bus: admin.BusCannotReachAll, Unreached: []string{"n3"}, Leader: true, Voter: true, Routes: []string{"n2"}},
			{Node: identity.Node{Name: "n2"}, State: "up", Voter: true, Findings: []doctor.Finding{finding}},
			{Node: identity.Node{Name: "n3"}, State: "down"},
			{Node: identity.Node{Name: "n0"}, State: "removed"},
		},
		Findings: []doctor.Finding{finding},
	}
}

func testStatus(t *testing.T, f *testFleet) {
	f.answerWith(t, "status", testFleetStatus())
	code, stdout, _ := f.run(t, "", nil, "status")
	if want := "degraded: 2 of 3 nodes up, survives 0 failures\nwarning: n2: soon\n  fix: fleetbus node renew n2\n\n"; code != command.ExitOK || !strings.HasPrefix(stdout, want) {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	if code, _, stderr := f.run(t, "", nil, "status", "--check"); code != command.ExitFailed || !strings.Contains(stderr, "2 of 4 nodes answer, and 3 are a quorum") {
		t.Errorf("exit code %d with --check\n%s", code, stderr)
	}
	if code, stdout, _ = f.run(t, "", nil, "doctor"); code != command.ExitOK || strings.Count(stdout, "soon") != 1 {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	if code, _, _ = f.run(t, "", nil, "doctor", "--strict"); code != command.ExitFailed {
		t.Errorf("exit code %d with --strict", code)
	}
	ok := testFleetStatus()
	ok.Nodes, ok.Findings, ok.Survives = ok.Nodes[:1], nil, 1
	f.answerWith(t, "status", ok)
	if _, stdout, _ = f.run(t, "", nil, "status"); !strings.HasPrefix(stdout, "ok: 1 of 1 node up, survives 1 failure\n") {
		t.Error(stdout)
	}
	ok.Leader = ""
	f.answerWith(t, "status", ok)
	if _, stdout, _ = f.run(t, "", nil, "status"); !strings.HasPrefix(stdout, "degraded: 1 of 1 node up, no leader: nothing durable can change\n") {
		t.Error(stdout)
	}
}

func testRefused(t *testing.T, f *testFleet) {
	dir := t.TempDir()
	client := writeFile(t, filepath.Join(dir, "client.creds"), f.creds(t, "acme", identity.RoleClient))
	auditor := writeFile(t, filepath.Join(dir, "auditor.creds"), f.creds(t, "acme", identity.RoleAuditor))
	ca := filepath.Join(f.dir, "admin", "ca.pem")
	stranger, _, err := identity.NewAuthority("stranger", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	otherCA := writeFile(t, filepath.Join(dir, "other.pem"), stranger.ClientsPEM())
	other := &testFleet{authority: stranger, accounts: map[string]identity.Account{"acme": must[identity.Account](t)(stranger.NewAccount("acme", identity.Limits{}, time.Now()))}}
	forged := writeFile(t, filepath.Join(dir, "forged.creds"), other.creds(t, "acme", identity.RoleClient))
	local := strings.Replace(f.server, "127.0.0.1", "localhost", 1)

	f.answerWith(t, "account.info", admin.Errorf(admin.NotFound, "", "no such thing"))
	f.answerWith(t, "user.deny", admin.Errorf(admin.Denied, "", "no"))
	for _, c := range []struct {
		name   string
		args   []string
		code   command.ExitCode
		stderr string
	}{
		{"unknown authority", []string{"status", "--ca", otherCA}, command.ExitUnavailable, "of an authority that is not trusted here"},
		{"another name", []string{"status", "--server", local, "--ca", ca}, command.ExitUnavailable, "use a name that the certificate has: 127.0.0.1"},
		{"forged credentials", []string{"pub", "a", "b", "--creds", forged}, command.ExitDenied, "the server does not accept these credentials"},
		{"publish not allowed", []string{"pub", "a", "b", "--creds", auditor}, command.ExitDenied, "the role of this user does not allow it"},
		{"subscribe not allowed", []string{"sub", "$FLEETBUS.>", "--creds", client}, command.ExitDenied, "the role of this user does not allow it"},
		{"no administrator", []string{"status", "--creds", client}, command.ExitUnavailable, "nobody answers requests of administrators there"},
		{"no such thing", []string{"account", "info", "nobody"}, command.ExitNotFound, "no such thing"},
		{"plain text", []string{"status", "--server", "nats://" + f.server}, command.ExitUnavailable, "error:"},
		{"no responders", []string{"request", "nobody.there", "--creds", client}, command.ExitUnavailable, "nobody is subscribed to it"},
		{"denied", []string{"user", "deny", "acme/alice"}, command.ExitDenied, `denying "acme/alice": no`},
		{"impatient", []string{"status", "--timeout", "1ns"}, command.ExitUnavailable, "no answer in time"},
		{"no such stream", []string{"stream", "info", "NONE", "--creds", client}, command.ExitNotFound, "there is no such stream"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := f.run(t, "", nil, c.args...)
			if code != c.code || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit code %d, %s", code, stderr)
			}
		})
	}
}

func testMessages(t *testing.T, f *testFleet) {
	creds := writeFile(t, filepath.Join(t.TempDir(), "client.creds"), f.creds(t, "acme", identity.RoleClient))
	env := []string{"FLEETBUS_CREDS=" + creds}

	sub := f.start(t, creds, "sub", "greeting.>", "-o", "jsonl")
	sub.stderr.wait(t, "subscribed to greeting.>")
	if code, out, errs := f.run(t, "from stdin\x1b", env, "pub", "greeting.one", "-", "-H", "A: b"); code != command.ExitOK || !strings.Contains(out, "published 1 message to greeting.one") {
		t.Fatalf("exit code %d, %s%s", code, out, errs)
	}
	sub.stdout.wait(t, `{"subject":"greeting.one","headers":{"A":["b"]},"data":"from stdin\u001b"}`)
	if code, _, _ := f.run(t, "\xff", env, "pub", "greeting.two", "-", "--count", "2"); code != command.ExitOK {
		t.Fatalf("exit code %d", code)
	}
	sub.stdout.wait(t, `{"subject":"greeting.two","data_base64":"/w=="}`)
	// A lost connection is made again, and the gap is not silent.
	connections, err := f.broker.Connections(f.accounts["acme"].Public)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range connections {
		f.broker.Close(c.ID) // one that published may be gone already
	}
	sub.stderr.wait(t, "messages that came in between were missed")
	if code, _, _ := f.run(t, "", env, "pub", "greeting.again"); code != command.ExitOK {
		t.Fatalf("exit code %d", code)
	}
	sub.stdout.wait(t, `{"subject":"greeting.again","data":""}`)
	sub.cancel()
	if code := sub.end(t); code != command.ExitOK {
		t.Errorf("interrupted, sub ends with exit code %d", code)
	}

	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"reply", "time", "--count", "1", "fixed"}, "fixed\n"},
		{[]string{"reply", "time", "--count", "1", "--command", `cat; printf ' to %s' "$FLEETBUS_SUBJECT"`}, "ask to time\n"},
	} {
		reply := f.start(t, creds, c.args...)
		reply.stderr.wait(t, "subscribed to time")
		if code, out, errs := f.run(t, "", env, "request", "time", "ask"); code != command.ExitOK || out != c.want {
			t.Errorf("exit code %d, %q, %s", code, out, errs)
		}
		if code := reply.end(t); code != command.ExitOK {
			t.Errorf("reply ends with exit code %d, %s", code, reply.stderr)
		}
	}
	reply := f.start(t, creds, "reply", "broken", "--command", "exit 3")
	reply.stderr.wait(t, "subscribed to broken")
	if code, out, _ := f.run(t, "", env, "request", "broken", "-o", "json"); code != command.ExitOK || !strings.Contains(out, "Fleetbus-Error") {
		t.Errorf("exit code %d, %q", code, out)
	}
	reply.stderr.wait(t, "exit status 3")
	reply.cancel()
	if code := reply.end(t); code != command.ExitOK {
		t.Errorf("interrupted, reply ends with exit code %d", code)
	}
}

func testStreams(t *testing.T, f *testFleet) {
	creds := writeFile(t, filepath.Join(t.TempDir(), "client.creds"), f.creds(t, "acme", identity.RoleClient))
	for _, c := range []struct {
		line   string
		code   command.ExitCode
		stdout string
		stderr string
	}{
		{line: "stream add ORDERS --subject orders.> --dry-run", stdout: "would make stream ORDERS"},
		{line: "stream add ORDERS --subject orders.>", stdout: "stream ORDERS keeps orders.> in 1 copy", stderr: "warning: stream ORDERS has one copy"},
		{line: "stream add ORDERS", stdout: "in 1 copy, nothing changed"},
		{line: "stream add ORDERS --max-age 7d --max-bytes 1GiB -o json", stdout: `"max_age_seconds": 604800`},
		{line: "stream add ORDERS --max-msgs 10 --dry-run", stdout: "would set what is named of stream ORDERS"},
		{line: "stream add ORDERS --replicas 3", code: command.ExitFailed, stderr: `error: adding stream "ORDERS": no suitable peers`},
		{line: "stream add A.B", code: command.ExitUsage},
		{line: "pub orders.new one --stream", stdout: "published 1 message to orders.new, the last one is 1 of stream ORDERS"},
		{line: "pub orders.new two --stream --count 2", stdout: "the last one is 3 of stream ORDERS"},
		{line: "sub orders.> --stream ORDERS --count 3 -o jsonl", stdout: `"data":"two","stream":"ORDERS","sequence":3`},
		{line: "sub orders.> --stream ORDERS --count 1", stdout: "orders.new  one\n"},
		{line: "stream ls", stdout: "ORDERS  orders.>  file     1         -        3"},
		{line: "stream info ORDERS", stdout: "messages live  7d0h"},
		{line: "stream rm ORDERS", code: command.ExitUsage},
		{line: "stream rm ORDERS --dry-run", stdout: "would remove stream ORDERS with 3 messages"},
		{line: "stream rm ORDERS --yes", stdout: "stream ORDERS is removed"},
		{line: "stream rm ORDERS --yes", code: command.ExitNotFound},
		{line: "stream ls -o json", stdout: "[]\n"},
	} {
		t.Run(c.line, func(t *testing.T) {
			code, stdout, stderr := f.run(t, "", []string{"FLEETBUS_CREDS=" + creds}, strings.Fields(c.line)...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
			}
		})
	}
}
