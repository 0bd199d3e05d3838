# What users of pika and kombu do. The arguments are a port of this machine, an authority, a
# certificate with its key, and the password of the user worker.
import socket
import ssl
import sys

import kombu
import pika

port, ca, cert, key, password = int(sys.argv[1]), *sys.argv[2:6]


def expect(what, got, want):
    print(what, "ok" if got == want else "WRONG: %r" % (got,), flush=True)
    if got != want:
        sys.exit(1)


def context(certificate):
    c = ssl.create_default_context(cafile=ca)
    if certificate:
        c.load_cert_chain(cert, key)
    return c


def connect(certificate):
    login = pika.credentials.ExternalCredentials() if certificate else pika.PlainCredentials("worker", password)
    return pika.BlockingConnection(pika.ConnectionParameters(
        "127.0.0.1", port, "/", login, ssl_options=pika.SSLOptions(context(certificate), "127.0.0.1")))


# Pika: a work queue, with confirms.
bus = connect(True)
ch = bus.channel()
ch.confirm_delivery()
ch.queue_declare("tasks", durable=True, arguments={"x-max-priority": 5, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})
ch.queue_declare("dead", durable=True)
for i in range(100):
    ch.basic_publish("", "tasks", b"%d" % i, pika.BasicProperties(delivery_mode=2, priority=i % 2), mandatory=True)
try:
    ch.basic_publish("", "nowhere", b"", mandatory=True)
    expect("unroutable", "taken", "refused")
except pika.exceptions.UnroutableError:
    print("unroutable ok")

other = connect(False)
worker = other.channel()
worker.basic_qos(prefetch_count=10)
got = []
for method, properties, body in worker.consume("tasks", inactivity_timeout=20):
    if method is None:
        break
    n = int(body)
    if n == 7 and not method.redelivered:
        worker.basic_nack(method.delivery_tag, requeue=True)
        continue
    if n == 9:
        worker.basic_reject(method.delivery_tag, requeue=False)
    else:
        worker.basic_ack(method.delivery_tag)
    got.append(n)
    if len(got) == 100:
        break
worker.cancel()
expect("all came, the urgent first", sorted(got), list(range(100)))
expect("urgent", all(n % 2 for n in got[:50]), True)
method, properties, body = ch.basic_get("dead", auto_ack=True)
expect("dead letter", (body, properties.headers["x-death"][0]["reason"]), (b"9", "rejected"))

# Headers, and a queue of one's own.
ch.exchange_declare("h", "headers")
own = ch.queue_declare("", exclusive=True).method.queue
ch.queue_bind(own, "h", arguments={"x-match": "any", "os": "linux", "cpu": "arm"})
ch.basic_publish("h", "", b"one", pika.BasicProperties(headers={"cpu": "arm"}), mandatory=True)
expect("headers", ch.basic_get(own, auto_ack=True)[2], b"one")
try:
    worker.queue_declare(own, passive=True)
    expect("exclusive", "seen", "locked")
except pika.exceptions.ChannelClosedByBroker as e:
    expect("exclusive", e.reply_code, 405)
try:
    ch.queue_declare("tasks", durable=False)
    expect("other arguments", "taken", "refused")
except pika.exceptions.ChannelClosedByBroker as e:
    expect("other arguments", e.reply_code, 406)
bus.close()
other.close()

# Kombu, as Celery has it: a direct exchange, a topic with priorities, and broadcast.
url = "amqp://127.0.0.1:%d//" % port
with kombu.Connection(url, userid="worker", password=password, login_method="PLAIN", ssl={"ca_certs": ca, "cert_reqs": ssl.CERT_REQUIRED}) as c:
    exchange = kombu.Exchange("celery", "direct", durable=True)
    queue = kombu.Queue("celery", exchange, routing_key="celery")
    pidbox = kombu.Exchange("celery.pidbox", "fanout", durable=False)
    mine = kombu.Queue("celery@host.celery.pidbox", pidbox, durable=False, auto_delete=True, expires=10)
    heard = []

    def on(body, message):
        heard.append(body)
        message.ack()

    with c.Consumer([queue, mine], callbacks=[on], accept=["json"]):
        producer = c.Producer(serializer="json")
        for i in range(50):
            producer.publish({"task": i}, exchange=exchange, routing_key="celery", declare=[queue], delivery_mode=2)
        producer.publish({"method": "ping"}, exchange=pidbox, declare=[pidbox])
        try:
            while len(heard) < 51:
                c.drain_events(timeout=20)
        except socket.timeout:
            pass
    expect("kombu", (len(heard), [b["task"] for b in heard if "task" in b]), (51, list(range(50))))
print("end")
