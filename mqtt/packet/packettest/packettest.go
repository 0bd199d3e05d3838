// Package packettest has packets of MQTT that break a rule, for the tests of those
// who read packets.
package packettest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// The versions, sides and reason codes, as package packet has them: its own tests
// use this package, which therefore cannot use it.
const (
	V311, V5       = 4, 5
	Client, Server = 0, 1

	MalformedPacket            = 0x81
	ProtocolError              = 0x82
	UnsupportedProtocolVersion = 0x84
	BadAuthenticationMethod    = 0x8C
	TopicFilterInvalid         = 0x8F
	TopicNameInvalid           = 0x90
	TopicAliasInvalid          = 0x94
	QuotaExceeded              = 0x97
)

// A Breach is a packet that breaks a clause.
type Breach struct {
	// Clauses are the broken ones. The first is the one that is told of, the others
	// say the same.
	Clauses string
	// Version is that of the connection, 0 before CONNECT.
	Version byte
	// From is the side that sends it.
	From byte
	// Spec is the packet: hexadecimal digits are bytes, what is in quotes is a
	// string with its length before it, and what is in braces is properties with
	// their length. The length of the packet is left out.
	Spec string
	// Code is the reason code that tells of it.
	Code byte
}

// Wire is the first byte and the body of the packet.
func (b Breach) Wire() (first byte, body []byte) { return Wire(b.Spec) }

// Wire is the first byte and the body of the packet that is written as the Spec of
// a Breach is. It panics if it is none.
func Wire(packet string) (first byte, body []byte) {
	var out []byte
	var opened []int
	for spec := packet; spec != ""; {
		switch spec[0] {
		case ' ':
			spec = spec[1:]
		case '"':
			text, rest, found := strings.Cut(spec[1:], `"`)
			if !found {
				panic(fmt.Sprintf("a string does not end: %s", packet))
			}
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(text))), text...)
			spec = rest
		case '{':
			opened = append(opened, len(out))
			spec = spec[1:]
		case '}':
			at := opened[len(opened)-1]
			out = slices.Insert(out, at, binary.AppendUvarint(nil, uint64(len(out)-at))...)
			opened, spec = opened[:len(opened)-1], spec[1:]
		default:
			one, err := hex.DecodeString(spec[:2])
			if err != nil {
				panic(fmt.Sprintf("%v: %s", err, packet))
			}
			out, spec = append(out, one...), spec[2:]
		}
	}
	return out[0], out[1:]
}

// Breaches are packets that break every clause that one packet can break.
func Breaches() []Breach {
	long := strings.Repeat("a/", 128) + "a"
	many := strings.Repeat(`26"n""v"`, 65)
	filters := strings.Repeat(`"f"00`, 257)
	return slices.Concat([]Breach{
		// Data and format.
		{"MQTT-1.5.4-1 MQTT-3.3.2-1", V5, Client, `30 0002 C328 {}`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.3.2-1", V311, Client, `30 0003 EDA080`, MalformedPacket}, // a surrogate
		{"MQTT-1.5.4-1", V311, Server, `30 0002 C0AF`, MalformedPacket},                // overlong
		{"MQTT-1.5.4-2", V5, Client, `30 0003 610062 {}`, MalformedPacket},
		{"MQTT-1.5.4-2", 0, Client, `10 "MQTT" 04 82 0000 "c" 0001 00`, MalformedPacket},
		{"MQTT-1.5.5-1", V5, Client, `30 "a" 8000`, MalformedPacket},
		{"MQTT 1.5.5", V5, Client, `30 "a" FFFFFFFF01`, MalformedPacket},
		{"MQTT-1.5.5-1", V5, Client, `82 0001 {0B8100} "a" 00`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-1.5.7-1", V5, Client, `30 "a" {26"n"0001FF}`, MalformedPacket},
		{"MQTT-1.5.4-2 MQTT-1.5.7-1", V5, Client, `30 "a" {26000100"v"}`, MalformedPacket},
		{"MQTT 2.1.2", V5, Client, `00`, MalformedPacket},
		{"MQTT311-2.2.2-2", V311, Client, `F0`, MalformedPacket},
		{"MQTT-2.1.3-1", 0, Client, `11 "MQTT" 04 02 0000 "c"`, MalformedPacket},
		{"MQTT-2.1.3-1", V311, Server, `21 0000`, MalformedPacket},
		{"MQTT-2.1.3-1", V311, Client, `41 0001`, MalformedPacket},
		{"MQTT-2.1.3-1", V5, Client, `52 0001`, MalformedPacket},
		{"MQTT-2.1.3-1", V5, Server, `74 0001`, MalformedPacket},
		{"MQTT-2.1.3-1", V311, Server, `92 0001 00`, MalformedPacket},
		{"MQTT-2.1.3-1", V311, Server, `B2 0001`, MalformedPacket},
		{"MQTT-2.1.3-1", V311, Client, `C1`, MalformedPacket},
		{"MQTT-2.1.3-1", V5, Server, `D8`, MalformedPacket},
		{"MQTT-2.2.1-3", V311, Client, `32 "a" 0000`, ProtocolError},
		{"MQTT-2.2.1-3", V5, Client, `34 "a" 0000 {}`, ProtocolError},
		{"MQTT-2.2.1-3", V5, Client, `82 0000 {} "a" 00`, ProtocolError},
		{"MQTT-2.2.1-3", V311, Client, `A2 0000 "a"`, ProtocolError},
		{"MQTT-2.2.1-4", V5, Server, `32 "a" 0000 {}`, ProtocolError},
		{"MQTT-2.2.1-5", V311, Client, `40 0000`, ProtocolError},
		{"MQTT-2.2.1-5", V5, Client, `50 0000`, ProtocolError},
		{"MQTT-2.2.1-5", V311, Server, `62 0000`, ProtocolError},
		{"MQTT-2.2.1-5", V5, Server, `70 0000 00`, ProtocolError},
		{"MQTT-2.2.1-6", V311, Server, `90 0000 00`, ProtocolError},
		{"MQTT-2.2.1-6", V5, Server, `B0 0000 {} 00`, ProtocolError},
		// Without its property length a packet is read as having another one.
		{"MQTT-4.13.1-1 MQTT-2.2.2-1", V5, Client, `30 "a"`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `30 "a" {2B00}`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `30 "a" {0400}`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `30 "a" {8101}`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `30 "a" {1100000001}`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `A2 0001 {0B01} "a"`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `40 0001 00 {0101}`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `82 0001 {0101} "a" 00`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `E0 00 {0101}`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `F0 18 {15"m"0101}`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Server, `20 00 00 {0101}`, MalformedPacket},
		{"MQTT 2.2.2.2", 0, Client, `10 "MQTT" 05 02 0000 {0101} "c"`, MalformedPacket},
		{"MQTT 2.2.2.2", 0, Client, `10 "MQTT" 05 06 0000 {} "c" {230001} "w" ""`, MalformedPacket},
		{"MQTT 2.2.2.2", V5, Client, `30 "a" {01000100}`, ProtocolError},
		{"MQTT 2.2.2.2", V5, Client, `82 0001 {0B010B02} "a" 00`, ProtocolError},
		{"MQTT 2.2.2.2", V5, Client, `40 0001 00 {1F"a"1F"b"}`, ProtocolError},
		{"MQTT 2.2.2.2", V5, Client, `30 "a" {` + many + `}`, QuotaExceeded},
		{"MQTT-4.13.1-1", V5, Client, `30 "a" {02}`, MalformedPacket},
		{"MQTT-4.13.1-1", V5, Client, `30 "a" {0300FF61}`, MalformedPacket},
		{"MQTT-4.13.1-1", V5, Client, `30 "a" 06 0100`, MalformedPacket},
		// CONNECT.
		{"MQTT-3.1.0-1", 0, Client, `C0`, ProtocolError},
		{"MQTT-3.1.0-1", 0, Client, `47 "T / HTTP/1.1"`, ProtocolError},
		{"MQTT-3.1.0-2", V5, Client, `10 "MQTT" 05 02 0000 {} "c"`, ProtocolError},
		{"MQTT-3.1.0-2", V311, Client, `10 "MQTT" 04 02 0000 "c"`, ProtocolError},
		{"MQTT-3.1.2-1", 0, Client, `10 "MQIsdp" 03 02 0000 "c"`, UnsupportedProtocolVersion},
		{"MQTT-3.1.2-1", 0, Client, `10 "mqtt" 05 02 0000 {} "c"`, UnsupportedProtocolVersion},
		{"MQTT-3.1.2-2", 0, Client, `10 "MQTT" 03 02 0000 "c"`, UnsupportedProtocolVersion},
		{"MQTT-3.1.2-2", 0, Client, `10 "MQTT" 06 02 0000 {} "c"`, UnsupportedProtocolVersion},
		{"MQTT-3.1.2-3", 0, Client, `10 "MQTT" 04 03 0000 "c"`, MalformedPacket},
		{"MQTT-3.1.2-9", 0, Client, `10 "MQTT" 04 06 0000 "c"`, MalformedPacket},
		{"MQTT-3.1.2-9", 0, Client, `10 "MQTT" 05 06 0000 {} "c" {} "w"`, MalformedPacket},
		{"MQTT-3.1.2-11", 0, Client, `10 "MQTT" 04 0A 0000 "c"`, MalformedPacket},
		{"MQTT-3.1.2-12", 0, Client, `10 "MQTT" 04 1E 0000 "c" "w" ""`, MalformedPacket},
		{"MQTT-3.1.2-13", 0, Client, `10 "MQTT" 05 22 0000 {} "c"`, MalformedPacket},
		{"MQTT-3.1.2-16", 0, Client, `10 "MQTT" 04 02 0000 "c" "u"`, MalformedPacket},
		{"MQTT-3.1.2-17", 0, Client, `10 "MQTT" 04 82 0000 "c"`, MalformedPacket},
		{"MQTT-3.1.2-18", 0, Client, `10 "MQTT" 04 82 0000 "c" "u" "p"`, MalformedPacket},
		{"MQTT-3.1.2-19", 0, Client, `10 "MQTT" 05 42 0000 {} "c"`, MalformedPacket},
		{"MQTT311-3.1.2-22", 0, Client, `10 "MQTT" 04 42 0000 "c" "p"`, MalformedPacket},
		{"MQTT 3.1.2.11.3", 0, Client, `10 "MQTT" 05 02 0000 {210000} "c"`, ProtocolError},
		{"MQTT 3.1.2.11.4", 0, Client, `10 "MQTT" 05 02 0000 {2700000000} "c"`, ProtocolError},
		{"MQTT 3.1.2.11.6", 0, Client, `10 "MQTT" 05 02 0000 {1902} "c"`, ProtocolError},
		{"MQTT 3.1.2.11.7", 0, Client, `10 "MQTT" 05 02 0000 {1702} "c"`, ProtocolError},
		{"MQTT 3.1.2.11.10", 0, Client, `10 "MQTT" 05 02 0000 {16"d"} "c"`, ProtocolError},
		{"MQTT-4.12.0-1", 0, Client, `10 "MQTT" 05 02 0000 {15""} "c"`, BadAuthenticationMethod},
		{"MQTT-3.1.3-3", 0, Client, `10 "MQTT" 04 02 0000`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.1.3-4", 0, Client, `10 "MQTT" 04 02 0000 0001 FF`, MalformedPacket},
		{"MQTT-3.1.2-9 MQTT-3.1.3-1", 0, Client, `10 "MQTT" 04 C6 0000 "c" 0001`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.1.3-11", 0, Client, `10 "MQTT" 04 06 0000 "c" 0001 FF ""`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.1.3-12", 0, Client, `10 "MQTT" 04 82 0000 "c" 0001 FF`, MalformedPacket},
		{"MQTT-4.7.0-1", 0, Client, `10 "MQTT" 04 06 0000 "c" "a/+" ""`, MalformedPacket},
		{"MQTT-4.7.3-1", 0, Client, `10 "MQTT" 04 06 0000 "c" "" ""`, MalformedPacket},
		{"MQTT-3.1.4-1", 0, Client, `10 "MQTT"`, MalformedPacket},
		{"MQTT-3.1.4-1", 0, Client, `10 "MQTT" 04 C2 0000 "c" "u" "p" 00`, MalformedPacket},
		// CONNECT and others, in the other version.
		{"MQTT-3.1.2-3", 0, Client, `10 "MQTT" 05 03 0000 {} "c"`, MalformedPacket},
		{"MQTT-3.1.2-11", 0, Client, `10 "MQTT" 05 0A 0000 {} "c"`, MalformedPacket},
		{"MQTT-3.1.2-12", 0, Client, `10 "MQTT" 05 1E 0000 {} "c" {} "w" ""`, MalformedPacket},
		{"MQTT-3.1.2-13", 0, Client, `10 "MQTT" 04 22 0000 "c"`, MalformedPacket},
		{"MQTT-3.1.2-16", 0, Client, `10 "MQTT" 05 02 0000 {} "c" "u"`, MalformedPacket},
		{"MQTT-3.1.2-17", 0, Client, `10 "MQTT" 05 82 0000 {} "c"`, MalformedPacket},
		{"MQTT-3.1.2-18", 0, Client, `10 "MQTT" 05 82 0000 {} "c" "u" "p"`, MalformedPacket},
		{"MQTT-3.1.2-19", 0, Client, `10 "MQTT" 04 C2 0000 "c" "u"`, MalformedPacket},
		{"MQTT-3.1.3-3", 0, Client, `10 "MQTT" 05 02 0000 {}`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.1.3-4", 0, Client, `10 "MQTT" 05 02 0000 {} 0001 FF`, MalformedPacket},
		{"MQTT-3.1.2-9 MQTT-3.1.3-1", 0, Client, `10 "MQTT" 05 C6 0000 {} "c" {} 0001`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.1.3-11", 0, Client, `10 "MQTT" 05 06 0000 {} "c" {} 0001 FF ""`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.1.3-12", 0, Client, `10 "MQTT" 05 82 0000 {} "c" 0001 FF`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.1.3-12", 0, Client, `10 "MQTT" 05 82 0000 {} "c" 0003 EDA080`, MalformedPacket},
		{"MQTT-3.1.4-1", 0, Client, `10 "MQTT" 05 C2 0000 {} "c" "u" "p" 00`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.10.3-1", V5, Client, `A2 0001 {} 0001 FF`, MalformedPacket},
		{"MQTT-3.10.1-1", V311, Client, `A3 0001 "a"`, MalformedPacket},
		{"MQTT-3.10.3-2", V311, Client, `A2 0001`, ProtocolError},
		{"MQTT-3.14.1-1", V5, Client, `E1`, MalformedPacket},
		{"MQTT-3.3.1-2 MQTT-4.3.1-1", V5, Client, `38 "a" {}`, MalformedPacket},
		{"MQTT-3.3.1-4", V311, Client, `36 "a" 0001`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.8.3-1", V311, Client, `82 0001 0001 FF 00`, MalformedPacket},
		{"MQTT-4.7.1-2", V5, Client, `82 0001 {} "a+/b" 00`, MalformedPacket},
		// CONNACK.
		{"MQTT-3.2.2-1", V5, Server, `20 02 00 {}`, MalformedPacket},
		{"MQTT-3.2.2-6", V5, Server, `20 01 87 {}`, ProtocolError},
		{"MQTT-3.2.2-6", V311, Server, `20 01 05`, ProtocolError},
		{"MQTT-3.2.2-8", V5, Server, `20 00 8E {}`, ProtocolError},
		{"MQTT311-3.2.2-6", V311, Server, `20 00 06`, ProtocolError},
		{"MQTT 3.2.2.3.3", V5, Server, `20 00 00 {210000}`, ProtocolError},
		{"MQTT 3.2.2.3.4", V5, Server, `20 00 00 {2402}`, ProtocolError},
		{"MQTT 3.2.2.3.5", V5, Server, `20 00 00 {2502}`, ProtocolError},
		{"MQTT 3.2.2.3.6", V5, Server, `20 00 00 {2700000000}`, ProtocolError},
		{"MQTT 3.2.2.3.11", V5, Server, `20 00 00 {2802}`, ProtocolError},
		{"MQTT 3.2.2.3.12", V5, Server, `20 00 00 {2902}`, ProtocolError},
		{"MQTT 3.2.2.3.13", V5, Server, `20 00 00 {2A02}`, ProtocolError},
		{"MQTT-4.12.0-5", V5, Server, `20 00 00 {15""}`, ProtocolError},
		{"MQTT-4.13.1-1", V311, Server, `20 0000 00`, MalformedPacket},
		// PUBLISH.
		{"MQTT-3.3.1-2 MQTT-4.3.1-1", V311, Client, `38 "a"`, MalformedPacket},
		{"MQTT-3.3.1-4", V5, Client, `36 "a" 0001 {}`, MalformedPacket},
		{"MQTT-4.7.0-1 MQTT-3.3.2-2", V5, Client, `30 "a/+" {}`, MalformedPacket},
		{"MQTT-4.7.0-1 MQTT-3.3.2-2", V311, Client, `30 "#"`, MalformedPacket},
		{"MQTT-4.7.3-1", V311, Client, `30 ""`, MalformedPacket},
		{"MQTT 4.7.3", V5, Client, `30 "` + long + `" {}`, TopicNameInvalid},
		{"MQTT-3.3.2-8", V5, Client, `30 "a" {230000}`, TopicAliasInvalid},
		{"MQTT-1.5.4-1 MQTT-3.3.2-13", V5, Client, `30 "a" {080001FF}`, MalformedPacket},
		{"MQTT-3.3.2-14", V5, Client, `30 "a" {08"b/#"}`, MalformedPacket},
		{"MQTT-4.7.3-1", V5, Client, `30 "a" {08""}`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.3.2-19", V5, Client, `30 "a" {030001FF}`, MalformedPacket},
		{"MQTT 3.3.2.3.2", V5, Client, `30 "a" {0102}`, ProtocolError},
		{"MQTT 3.3.2.3.4", V5, Client, `30 "" {}`, ProtocolError},
		{"MQTT-3.3.4-6", V5, Client, `30 "a" {0B01}`, ProtocolError},
		{"MQTT 3.8.2.1.2", V5, Server, `30 "a" {0B00}`, ProtocolError},
		// Acks.
		{"MQTT-3.4.2-1", V5, Client, `40 0001 92`, ProtocolError},
		{"MQTT-3.5.2-1", V5, Client, `50 0001 01`, ProtocolError},
		{"MQTT-3.6.1-1", V5, Client, `60 0001`, MalformedPacket},
		{"MQTT-3.6.1-1", V311, Server, `66 0001`, MalformedPacket},
		{"MQTT-3.6.2-1", V5, Client, `62 0001 80`, ProtocolError},
		{"MQTT-3.7.2-1", V5, Client, `70 0001 10`, ProtocolError},
		{"MQTT-4.13.1-1", V311, Client, `40 0001 00`, MalformedPacket},
		{"MQTT-4.13.1-1", V5, Client, `40 0001 00 {} 00`, MalformedPacket},
		// SUBSCRIBE and SUBACK.
		{"MQTT-3.8.1-1", V5, Client, `80 0001 {} "a" 00`, MalformedPacket},
		{"MQTT-3.8.1-1", V311, Client, `8A 0001 "a" 00`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.8.3-1", V5, Client, `82 0001 {} 0001 FF 00`, MalformedPacket},
		{"MQTT-3.8.3-2", V5, Client, `82 0001 {}`, ProtocolError},
		{"MQTT-3.8.3-2", V311, Client, `82 0001`, ProtocolError},
		{"MQTT-3.8.3-4", V5, Client, `82 0001 {} "$share/g/a" 04`, ProtocolError},
		{"MQTT-3.8.3-5", V5, Client, `82 0001 {} "a" 40`, MalformedPacket},
		{"MQTT-3.8.3-5", V5, Client, `82 0001 {} "a" 80`, MalformedPacket},
		{"MQTT311-3.8.3-4", V311, Client, `82 0001 "a" 04`, MalformedPacket},
		{"MQTT311-3.8.3-4", V311, Client, `82 0001 "a" 03`, MalformedPacket},
		{"MQTT 3.8.3", V5, Client, `82 0001 {} ` + filters, QuotaExceeded},
		{"MQTT 3.8.3.1", V5, Client, `82 0001 {} "a" 03`, ProtocolError},
		{"MQTT 3.8.3.1", V5, Client, `82 0001 {} "a" 30`, ProtocolError},
		{"MQTT 3.8.2.1.2", V5, Client, `82 0001 {0B00} "a" 00`, ProtocolError},
		{"MQTT-4.13.1-1", V5, Client, `82 1234 00 000150`, MalformedPacket}, // it ended a broker
		{"MQTT-3.8.4-6", V5, Server, `90 0001 {}`, MalformedPacket},
		{"MQTT-3.9.3-2", V5, Server, `90 0001 {} 03`, ProtocolError},
		{"MQTT311-3.9.3-2", V311, Server, `90 0001 87`, ProtocolError},
		// UNSUBSCRIBE and UNSUBACK.
		{"MQTT-3.10.1-1", V5, Client, `A0 0001 {} "a"`, MalformedPacket},
		{"MQTT-1.5.4-1 MQTT-3.10.3-1", V311, Client, `A2 0001 0001 FF`, MalformedPacket},
		{"MQTT-3.10.3-2", V5, Client, `A2 0001 {}`, ProtocolError},
		{"MQTT 3.11.3", V5, Server, `B0 0001 {}`, MalformedPacket},
		{"MQTT-3.11.3-2", V5, Server, `B0 0001 {} 01`, ProtocolError},
		{"MQTT-4.13.1-1", V311, Server, `B0 0001 00`, MalformedPacket},
		// DISCONNECT and AUTH.
		{"MQTT-3.14.1-1", V311, Client, `E1`, MalformedPacket},
		{"MQTT-3.14.2-1", V5, Client, `E0 8B`, ProtocolError},
		{"MQTT-3.14.2-1", V5, Server, `E0 04`, ProtocolError},
		{"MQTT-3.14.2-2", V5, Server, `E0 00 {1100000000}`, ProtocolError},
		{"MQTT-4.13.1-1", V311, Client, `E0 00`, MalformedPacket},
		{"MQTT-4.13.1-1", V5, Client, `C0 00`, MalformedPacket},
		{"MQTT-3.15.1-1", V5, Client, `F1 18 {15"m"}`, MalformedPacket},
		{"MQTT-3.15.2-1", V5, Client, `F0 00 {15"m"}`, ProtocolError},
		{"MQTT-3.15.2-1", V5, Client, `F0`, ProtocolError},
		{"MQTT-3.15.2-1", V5, Server, `F0 19 {15"m"}`, ProtocolError},
		{"MQTT 3.15.2.2.2 MQTT-4.12.0-5", V5, Server, `F0 18 {}`, ProtocolError},
		// Filters.
		{"MQTT-4.7.1-1", V5, Client, `82 0001 {} "a/#/b" 00`, MalformedPacket},
		{"MQTT-4.7.1-1", V311, Client, `A2 0001 "a#"`, MalformedPacket},
		{"MQTT-4.7.1-2", V311, Client, `82 0001 "a+/b" 00`, MalformedPacket},
		{"MQTT-4.7.3-1", V5, Client, `A2 0001 {} ""`, MalformedPacket},
		{"MQTT-4.7.3-1", V311, Client, `82 0001 "" 00`, MalformedPacket},
		{"MQTT 4.7.3", V5, Client, `82 0001 {} "` + long + `" 00`, TopicFilterInvalid},
		{"MQTT-4.8.2-1", V5, Client, `82 0001 {} "$share//a" 00`, MalformedPacket},
		{"MQTT-4.8.2-1", V5, Client, `A2 0001 {} "$share/"`, MalformedPacket},
		{"MQTT-4.8.2-2", V5, Client, `82 0001 {} "$share/g" 00`, MalformedPacket},
		{"MQTT-4.8.2-2", V5, Client, `82 0001 {} "$share/g/" 00`, MalformedPacket},
		{"MQTT-4.8.2-2", V5, Client, `82 0001 {} "$share/g+/a" 00`, MalformedPacket},
		{"MQTT-4.7.1-1", V5, Client, `82 0001 {} "$share/g/#/a" 00`, MalformedPacket},
	}, strays())
}

// strays are the packets of the wrong side.
func strays() []Breach {
	var all []Breach
	for _, spec := range []string{`20 0000`, `90 0001 00`, `B0 0001`, `D0`} {
		all = append(all, Breach{"MQTT-4.13.1-1", V311, Client, spec, ProtocolError}, Breach{"MQTT-4.13.1-1", V5, Client, spec, ProtocolError})
	}
	for _, spec := range []string{`10 "MQTT" 04 02 0000 "c"`, `82 0001 "a" 00`, `A2 0001 "a"`, `C0`} {
		all = append(all, Breach{"MQTT-4.13.1-1", V311, Server, spec, ProtocolError}, Breach{"MQTT-4.13.1-1", V5, Server, spec, ProtocolError})
	}
	return append(all, Breach{"MQTT-4.13.1-1", V311, Server, `E0`, ProtocolError})
}
