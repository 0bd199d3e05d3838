# What nova and neutron do with oslo.messaging, each as the user that a plan made for it, and
# what they may not. The argument is the directory of the plan; each line of the output is
# what was done.
import os
import ssl
import sys
import threading
import time

import amqp
import oslo_messaging as om
from oslo_config import cfg
from oslo_messaging._metrics import client as metrics

root = sys.argv[1]


def settings(host, service):
    conf = cfg.ConfigOpts()
    options = getattr(metrics, "oslo_messaging_metrics", None)
    if options:
        conf.register_opts(options, group="oslo_messaging_metrics")
    conf(["--config-file", os.path.join(root, host, service, service + ".conf")])
    return conf


def expect(what, ok):
    print(what, "ok" if ok else "WRONG", flush=True)
    if not ok:
        sys.exit(1)


class Endpoint:
    """Answers with its own name, and keeps what it was told."""

    def __init__(self, name):
        self.name, self.told = name, []

    def who(self, ctxt):
        return self.name

    def tell(self, ctxt, text):
        self.told.append(text)

    def heard(self, text):
        end = time.time() + 60
        while text not in self.told and time.time() < end:
            time.sleep(0.05)
        return text in self.told


running = []


class Service:
    def __init__(self, host, service):
        self.host = host
        self.conf = settings(host, service)
        self.transport = om.get_rpc_transport(self.conf)

    def serve(self, topic):
        e = Endpoint(topic + " of " + self.host)
        server = om.get_rpc_server(self.transport, om.Target(topic=topic, server=self.host), [e], executor="threading")
        server.start()
        running.append(server)
        return e

    def client(self, topic, **to):
        return om.RPCClient(self.transport, om.Target(topic=topic, **to), timeout=30, retry=3)

    def channel(self):
        """A connection of the same user, below oslo.messaging."""
        url, mine = om.TransportURL.parse(self.conf), self.conf.oslo_messaging_rabbit
        host = url.hosts[0]
        tls = {"ca_certs": mine.ssl_ca_file, "cert_reqs": ssl.CERT_REQUIRED}
        if mine.ssl_cert_file:
            tls.update(certfile=mine.ssl_cert_file, keyfile=mine.ssl_key_file)
        conn = amqp.Connection("%s:%d" % (host.hostname, host.port), userid=host.username or "", password=host.password or "",
                               virtual_host=url.virtual_host, ssl=tls, login_method=mine.rabbit_login_method, connect_timeout=20)
        conn.connect()
        return conn.channel()

    def refused(self, what, do):
        channel = self.channel()
        code = 0
        try:
            do(channel)
        except amqp.exceptions.AMQPError as e:
            code = e.reply_code
        expect("%s is refused %s" % (self.host, what), code == 403)


def nova():
    ctl, cmp1 = Service("ctl1", "nova"), Service("cmp1.example.net", "nova")
    conductor, scheduler, there, here = ctl.serve("conductor"), ctl.serve("scheduler"), cmp1.serve("compute"), ctl.serve("compute")
    expect("compute calls conductor", cmp1.client("conductor").call({}, "who") == "conductor of ctl1")
    expect("conductor calls compute", ctl.client("compute", server="cmp1.example.net").call({}, "who") == "compute of cmp1.example.net")
    cmp1.client("conductor").cast({}, "tell", text="cast")
    expect("compute casts to conductor", conductor.heard("cast"))
    cmp1.client("scheduler").prepare(fanout=True).cast({}, "tell", text="instances")
    expect("compute tells all schedulers", scheduler.heard("instances"))
    ctl.client("compute").prepare(fanout=True).cast({}, "tell", text="all")
    expect("conductor tells all computes", there.heard("all") and here.heard("all"))
    cmp1.refused("to read conductor", lambda c: c.basic_consume("conductor"))
    cmp1.refused("to get from conductor", lambda c: c.basic_get("conductor"))
    cmp1.refused("to read another's queue", lambda c: c.basic_consume("compute.ctl1"))
    cmp1.refused("to make a conductor's queue", lambda c: c.queue_declare("conductor.cmp1", auto_delete=False))
    cmp1.refused("to delete conductor", lambda c: c.queue_delete("conductor"))
    cmp1.refused("to have what is for conductor", lambda c: (c.queue_declare("compute.cmp1"), c.queue_bind("conductor", "nova", "compute.cmp1")))


def notifications():
    heard, event = [], threading.Event()

    class Listener:
        def info(self, ctxt, publisher, kind, payload, metadata):
            heard.append((publisher, kind))
            event.set()

    for host, service in (("ctl1", "nova"), ("cmp1.example.net", "nova"), ("ctl1", "glance")):
        om.Notifier(om.get_notification_transport(settings(host, service)), publisher_id=service + "." + host).info({}, "begun", {})
    expect("services notify before anybody listens", True)
    conf = settings("ctl1", "ceilometer")
    targets = [om.Target(topic="notifications", exchange=x) for x in ("nova", "glance", "neutron")]
    listener = om.get_notification_listener(om.get_notification_transport(conf), targets, [Listener()], executor="threading")
    listener.start()
    running.append(listener)
    end = time.time() + 60
    while len(heard) < 3 and time.time() < end:
        event.wait(0.1)
        event.clear()
    expect("telemetry hears all", len(heard) == 3)


def neutron():
    ctl, net, cmp1 = Service("ctl1", "neutron"), Service("net1", "neutron"), Service("cmp1.example.net", "neutron")
    plugin, reports = ctl.serve("q-plugin"), ctl.serve("q-reports-plugin")
    dhcp, l3 = net.serve("dhcp_agent"), net.serve("l3_agent")
    ports = [s.serve("q-agent-notifier-port-update") for s in (net, cmp1)]
    groups = cmp1.serve("q-agent-notifier-security_group-update")
    pushed = cmp1.serve("neutron-vo-Port-1.10")
    expect("agents call the server", [s.client("q-plugin").call({}, "who") for s in (net, cmp1)] == ["q-plugin of ctl1"] * 2)
    cmp1.client("q-reports-plugin").cast({}, "tell", text="alive")
    expect("agents report", reports.heard("alive"))
    ctl.client("l3_agent", server="net1").cast({}, "tell", text="router")
    ctl.client("dhcp_agent", server="net1").cast({}, "tell", text="network")
    expect("the server tells one agent", l3.heard("router") and dhcp.heard("network"))
    for topic, to in (("q-agent-notifier-port-update", ports), ("q-agent-notifier-security_group-update", [groups]), ("neutron-vo-Port-1.10", [pushed])):
        ctl.client(topic).prepare(fanout=True).cast({}, "tell", text="all")
        expect("the server tells all of " + topic, all(e.heard("all") for e in to))
    for service in (net, cmp1):
        service.refused("to read q-plugin", lambda c: c.basic_consume("q-plugin"))
        service.refused("to read reports", lambda c: c.basic_get("q-reports-plugin"))
    cmp1.refused("to read dhcp_agent", lambda c: c.basic_consume("dhcp_agent.net1"))
    cmp1.refused("to tell agents", lambda c: c.exchange_declare("dhcp_agent_fanout", "fanout", auto_delete=True))


for part in (nova, notifications, neutron):
    part()
print("end", flush=True)
os._exit(0)  # to stop each server takes seconds
