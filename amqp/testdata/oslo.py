# An RPC server and its client with oslo.messaging, as an OpenStack service has them. The
# arguments are a configuration file, how many calls there are, and a topic; each line of
# the output is what was done.
import sys
import threading
import time

import oslo_messaging as om
from oslo_config import cfg
from oslo_messaging._metrics import client as metrics

conf = cfg.ConfigOpts()
metrics_options = getattr(metrics, "oslo_messaging_metrics", None)
if metrics_options:
    conf.register_opts(metrics_options, group="oslo_messaging_metrics")
conf(["--config-file", sys.argv[1]])
rounds, topic = int(sys.argv[2]), sys.argv[3]

said = []
told = threading.Event()


class Endpoint:
    def add(self, ctxt, a, b):
        return a + b

    def note(self, ctxt, text):
        said.append(text)
        told.set()


transport = om.get_rpc_transport(conf)
servers = []
for name in ("one", "two"):
    server = om.get_rpc_server(transport, om.Target(topic=topic, server=name), [Endpoint()], executor="threading")
    server.start()
    servers.append(server)
client = om.RPCClient(transport, om.Target(topic=topic), timeout=20, retry=-1)


def expect(what, ok):
    print(what, "ok" if ok else "WRONG", flush=True)
    if not ok:
        sys.exit(1)


def noted(n):
    end = time.time() + 60
    while len(said) < n and time.time() < end:
        told.wait(0.1)
        told.clear()
    return len(said) == n


expect("call", client.call({}, "add", a=1, b=2) == 3)
expect("call of one", client.prepare(server="two").call({}, "add", a=3, b=4) == 7)
client.cast({}, "note", text="cast")
expect("cast", noted(1))
client.prepare(fanout=True).cast({}, "note", text="fanout")
expect("fanout", noted(3))
failed = 0
for i in range(rounds):
    try:
        if client.call({}, "add", a=i, b=1) != i + 1:
            expect("calls", False)
    except om.MessagingTimeout:
        failed += 1
    print("called", i, flush=True)
print("calls", rounds, "timed out", failed, flush=True)
for server in servers:
    server.stop()
    server.wait()
transport.cleanup()
