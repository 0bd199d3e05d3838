# Prints the header of the vector in docs/signing.md.
import sys

import fleetbus_signing as signing

signer = signing.Signer.from_creds(sys.argv[1], sys.argv[2])
print(signer.sign_at("orders.new", b'{"id":7}', 1790000000123, "AAECAwQFBgcICQoLDA0ODw"))
