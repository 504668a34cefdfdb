import sys

import gwt

url, certificate_hash = sys.argv[1:]
with gwt.connect(url, server_certificate_hashes=[certificate_hash]) as session:
    stream = session.create_bidirectional_stream()
    stream.write_all(b"hello")
    print(stream.read_all().decode())
