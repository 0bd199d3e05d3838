// Plays through what a client of MQTT.js can do, and prints "ok". Its arguments are
// the version, the options of a connection and the addresses of two nodes.
'use strict'
const assert = require('node:assert')
const fs = require('node:fs')
const mqtt = require('mqtt')

const [version, options, first, second] = [Number(process.argv[2]), JSON.parse(process.argv[3]), process.argv[4], process.argv[5]]
for (const name of ['ca', 'cert', 'key']) if (options[name]) options[name] = fs.readFileSync(options[name])
const five = version === 5
const at = `js/${process.pid}`
setTimeout(() => { console.error('it takes too long'); process.exit(1) }, 45000).unref()

// connect resolves to a client, its CONNACK, and take(), which is the next message.
function connect (url, id, more = {}) {
  const client = mqtt.connect(url, { ...options, protocolVersion: version, clientId: at + id, reconnectPeriod: 0, clean: true, ...more })
  const got = []
  const waiting = []
  client.on('message', (topic, payload, packet) => {
    const m = { topic, payload: payload.toString(), packet }
    waiting.length ? waiting.shift()(m) : got.push(m)
  })
  client.take = () => got.length ? Promise.resolve(got.shift()) : new Promise(resolve => waiting.push(resolve))
  client.count = () => got.length
  return new Promise((resolve, reject) => {
    client.on('error', reject)
    client.on('connect', connack => { client.connack = connack; resolve(client) })
  })
}
const lasting = five ? { clean: false, properties: { sessionExpiryInterval: 600 } } : { clean: false }

async function play () {
  let sub = await connect(first, 'sub', lasting)
  const pub = await connect(second, 'pub')
  await sub.subscribeAsync(`${at}/#`, { qos: 2 })
  for (const qos of [0, 1, 2]) {
    const properties = { contentType: 'text/plain', messageExpiryInterval: 60, payloadFormatIndicator: true, userProperties: { a: ['1', '2'], b: '3' } }
    await pub.publishAsync(`${at}/qos`, `m${qos}`, { qos, ...(five && { properties }) })
    const { topic, payload, packet } = await sub.take()
    assert.deepStrictEqual([topic, payload, packet.qos, packet.retain], [`${at}/qos`, `m${qos}`, qos, false])
    if (five) {
      assert.deepStrictEqual({ ...packet.properties.userProperties }, properties.userProperties)
      assert.strictEqual(packet.properties.contentType, 'text/plain')
    }
  }

  await pub.publishAsync(`${at}/kept`, 'kept', { qos: 1, retain: true })
  await sub.take()
  const late = await connect(first, 'late')
  await late.subscribeAsync(`${at}/kept`, { qos: 1 })
  // Published just before at another node, it may come as a new one as well.
  let kept = await late.take()
  if (!kept.packet.retain) kept = await late.take()
  assert.deepStrictEqual([kept.payload, kept.packet.retain], ['kept', true])

  const dying = await connect(second, 'dying', { will: { topic: `${at}/will`, payload: 'died', qos: 1, retain: false } })
  dying.stream.destroy()
  const will = await sub.take()
  assert.deepStrictEqual([will.topic, will.payload], [`${at}/will`, 'died'])

  const members = [await connect(first, 'm1'), await connect(second, 'm2')]
  for (const m of members) await m.subscribeAsync(`$share/g/${at}-work`, { qos: 1 })
  for (let i = 0; i < 20; i++) await pub.publishAsync(`${at}-work`, String(i), { qos: 1 })
  const work = new Set()
  while (work.size < 20) {
    for (const m of members) while (m.count()) work.add((await m.take()).payload)
    await new Promise(resolve => setTimeout(resolve, 5))
  }

  if (five) {
    const service = await connect(second, 'service')
    await service.subscribeAsync(`${at}-ask`, { qos: 1 })
    await late.subscribeAsync(`${at}-answer`, { qos: 1 })
    await late.publishAsync(`${at}-ask`, 'how much', { qos: 1, properties: { responseTopic: `${at}-answer`, correlationData: Buffer.from([0, 7]) } })
    const { packet } = await service.take()
    await service.publishAsync(packet.properties.responseTopic, '42', { qos: 1, properties: { correlationData: packet.properties.correlationData } })
    const answer = await late.take()
    assert.strictEqual(answer.payload, '42')
    assert.deepStrictEqual([...answer.packet.properties.correlationData], [0, 7])
    await service.endAsync()
  }

  sub.stream.destroy()
  for (const qos of [1, 2]) await pub.publishAsync(`${at}/away`, `away${qos}`, { qos })
  sub = await connect(second, 'sub', lasting)
  assert.strictEqual(sub.connack.sessionPresent, true)
  for (const qos of [1, 2]) assert.strictEqual((await sub.take()).payload, `away${qos}`)

  for (const c of [sub, pub, late, ...members]) await c.endAsync()
  console.log('ok')
  process.exit(0)
}
play().catch(err => { console.error(err); process.exit(1) })
