"""What a peer may send and open: the options of every server and channel that bound it.

What these cannot bound, the memory of requests that are still on their way, is bounded in ``mesh.receiving``.
"""

#: Largest request taken, bytes. A full batch of 10,000 deposits is just below it.
MESSAGE_BYTES_MAX = 1024 * 1024
#: Largest answer taken from a service of the mesh, bytes: a full page of 2 MB, and what one item may go beyond it.
ANSWER_BYTES_MAX = 4 * 1024 * 1024
#: Largest metadata of a call, bytes.
METADATA_BYTES_MAX = 16 * 1024
#: Connections to one server; further ones are closed at once. An idle one costs some 15 KB.
CONNECTIONS_MAX = 1024
#: Calls under way on one connection; a client of grpc keeps further ones back by itself, others are refused.
STREAMS_MAX = 1024

#: A new connection that has not said hello by then is closed, ms. By default it may take two minutes.
_HANDSHAKE_MS = 5_000
#: A connection without calls is closed after this, ms; a client with something to ask connects again.
_IDLE_MS = 300_000
#: How often a silent client is asked whether it is still there, and how long it may take to answer, ms.
_PING_MS, _PING_ANSWER_MS = 60_000, 20_000
#: The least time between two pings of a client, ms; whoever goes on below it loses the connection.
PING_INTERVAL_MIN_MS = 5_000

Options = list[tuple[str, int]]

#: Only uncompressed messages, one bit for each algorithm: a message of 1 MB can unpack to a thousand. Nothing of ours
#: compresses. A compressed call is refused with UNIMPLEMENTED when its headers come.
_UNCOMPRESSED: Options = [("grpc.compression_enabled_algorithms_bitset", 1)]

#: What a channel takes from a server, who may be hostile too.
CHANNEL_LIMITS: Options = [
    ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    *_UNCOMPRESSED,
]


def server_limits(*, connections_max: int = CONNECTIONS_MAX, streams_max: int = STREAMS_MAX) -> Options:
    """The options of a server; ``streams_max`` is of one connection."""
    return [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        # Between the two sizes grpc refuses at random.
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        *_UNCOMPRESSED,
        ("grpc.max_allowed_incoming_connections", connections_max),
        ("grpc.max_concurrent_streams", streams_max),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.keepalive_time_ms", _PING_MS),
        ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS),
        ("grpc.http2.ping_timeout_ms", _PING_ANSWER_MS),
        # Agrees with the keepalive of mesh.channels, or the server answers GOAWAY too_many_pings.
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Measuring the bandwidth lets every call send 4 MB ahead of being read; without it, 64 KB.
        ("grpc.http2.bdp_probe", 0),
    ]
