package mqtt

import (
	"strings"

	"github.com/fleetbus/fleetbus/identity"
)

// house begins all subjects of the protocol's own. Nobody's permissions for ">" have
// them.
const house = identity.Private + "MQTT."

// meetPrefix begins the subjects where a region is told that another one keeps
// something for MQTT, too. They and those of other regions are the only ones that are
// heard across.
const meetPrefix = house + "meet."

// places are the subjects where the nodes of a region keep what is the protocol's own.
// They are no other region's, because what is published in an account is heard in all
// regions: else each would store what the others keep. The region that the fleet began
// with has those that it had when it was the only one.
type places struct {
	house, message, mark, session, retained, take, alive string
	// share begins the names of the groups' consumers: an engine hears what is asked of
	// a consumer of one name in all regions.
	share string
	// region is the name of the region; empty if the server has none.
	region string
}

func placesOf(region string, first bool) places {
	own, share := house, "share_"
	if !first {
		own, share = house+"region."+region+".", "share_"+region+"_"
	}
	return places{
		house: own, message: own + "msg.", mark: own + "mark.", session: own + "ses.", retained: own + "ret.",
		take: own + "take.", alive: own + "alive.", share: share, region: region,
	}
}

// last is what follows the last dot of a subject: the name of a session, or of a run.
func last(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }
