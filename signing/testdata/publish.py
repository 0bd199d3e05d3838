# Publishes signed messages over MQTT and over AMQP. The arguments are the ports of this
# machine for MQTT and AMQP, an authority, a certificate with its key, and the audience.
import ssl
import sys
import threading

import paho.mqtt.client as mqtt
import paho.mqtt.properties as properties
import paho.mqtt.packettypes as packettypes
import pika

import fleetbus_signing as signing

mqtt_port, amqp_port, ca, cert, key, audience = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:7]
signer = signing.Signer.from_key(open(key, "rb").read(), audience)

# MQTT 5: the topic orders/mqtt is the subject orders.mqtt.
body = b"over MQTT"
props = properties.Properties(packettypes.PacketTypes.PUBLISH)
props.UserProperty = (signing.HEADER, signer.sign("orders.mqtt", body))
connected = threading.Event()
client = mqtt.Client(client_id="signs", protocol=mqtt.MQTTv5)
client.on_connect = lambda *_: connected.set()
client.tls_set(ca, cert, key)
client.connect("127.0.0.1", mqtt_port)
client.loop_start()
connected.wait(30)
client.publish("orders/mqtt", body, qos=1, properties=props).wait_for_publish(30)
client.disconnect()
client.loop_stop()
print("mqtt ok", flush=True)

# AMQP: to amq.topic, whose keys are subjects, and to a queue.
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(cert, key)
bus = pika.BlockingConnection(pika.ConnectionParameters(
    "127.0.0.1", amqp_port, "/", pika.credentials.ExternalCredentials(), ssl_options=pika.SSLOptions(context, "127.0.0.1")))
ch = bus.channel()
ch.confirm_delivery()
ch.queue_declare("tasks")
body = b"over AMQP"


def headers(subject):
    return pika.BasicProperties(headers={signing.HEADER: signer.sign(subject, body)})


ch.basic_publish("amq.topic", "orders.amqp", body, headers("orders.amqp"))
ch.basic_publish("", "tasks", body, headers(signing.exchange("", "tasks")), mandatory=True)
method, got, back = ch.basic_get("tasks", auto_ack=True)
assert back == body and signing.HEADER in got.headers, (back, got)
print("amqp ok", flush=True)
try:
    ch.basic_publish("", "tasks", body)
    print("unsigned WRONG", flush=True)
except pika.exceptions.ChannelClosedByBroker as e:
    print("unsigned", e.reply_code, e.reply_text, flush=True)
bus.close()
