//! The table of all codes.

use super::{Code, Entry, Section};

/// Declares the codes of each area, and the table of them.
macro_rules! table {
    ($($title:literal {
        $($name:ident = $code:literal: $meaning:literal, $cause:literal, $remedy:literal;)*
    })*) => {
        $($(
            #[doc = $meaning]
            pub const $name: Code = Code($code);
        )*)*

        /// Every code, by area.
        pub const TABLE: &[Section] = &[$(
            Section {
                title: $title,
                entries: &[$(
                    Entry {
                        code: $name,
                        meaning: $meaning,
                        cause: $cause,
                        remedy: $remedy,
                    },
                )*],
            },
        )*];
    };
}

table! {
    "Jobs" {
        UNDECODABLE = "FLEET-UNDECODABLE":
            "The record on the jobs topic is not JSON that could be an envelope.",
            "The producer wrote something else to the topic, or serialized the envelope in a way that workers do not read.",
            "Look at the original bytes with `mcp-fleet dlq show`, then correct the producer; see docs/jobs.md for what an envelope looks like.";
        INVALID_ENVELOPE = "FLEET-INVALID-ENVELOPE":
            "The record is JSON, but a field of the envelope is missing, has the wrong type, or is out of range.",
            "The producer's envelope does not follow `schemas/envelope.schema.json`.",
            "Correct the field that the message names, and submit the job again.";
        TOO_LARGE = "FLEET-TOO-LARGE":
            "The job, or something that belongs to it, is larger than the limit.",
            "The envelope exceeds `MCP_MAX_JOB_BYTES`, or a value exceeds the limit that the message names.",
            "Pass large data by reference, or raise the limit on every worker and server.";
        CONNECT = "FLEET-CONNECT":
            "The worker could not connect to mcp-server.",
            "The server is down or restarting, `MCP_SERVER_URL` is wrong, or DNS or TLS fails.",
            "Nothing if the server comes back: the job waits without spending an attempt. Otherwise check `MCP_SERVER_URL` from the worker's host.";
        UNAUTHORIZED = "FLEET-UNAUTHORIZED":
            "mcp-server refused the worker's credentials (HTTP 401 or 403).",
            "The token is missing, has expired, or belongs to another server; or a proxy in front of the server refuses the worker.",
            "Correct `MCP_SERVER_TOKEN`, or the file that `MCP_SERVER_TOKEN_FILE` names, of the workers; the jobs wait meanwhile.";
        NO_ACCESS_TOKEN = "FLEET-NO-ACCESS-TOKEN":
            "The worker could not get an access token for mcp-server, or mcp-server none for a hosted remote, or the ones that they get are refused.",
            "The authorization server is away or refuses the client, the server that is called names no authorization server or another one, or the token is meant for another server.",
            "Correct `MCP_OAUTH_CLIENT_ID` and what proves it (workers), or `oauth` of the `[[remote]]` in the policy file (hosted remotes), or bring the authorization server back; the jobs wait meanwhile.";
        CONNECTION_LOST = "FLEET-CONNECTION-LOST":
            "The connection was lost after the request had been sent, so the tool may have run.",
            "mcp-server or a proxy was restarted or cut off during the call.",
            "Nothing while attempts remain: the job is retried. Make the tool idempotent, or submit with `maxAttempts: 1` if it must not run twice.";
        TIMEOUT = "FLEET-TIMEOUT":
            "The call took longer than its timeout.",
            "The tool is slow or hangs, or the timeout is too short for it.",
            "Raise the job's `timeoutMs` or the tool's limit, or let the tool report progress.";
        HTTP = "FLEET-HTTP":
            "The server answered the call with an HTTP error status.",
            "mcp-server or a proxy in front of it failed; the status is in `error.code`.",
            "Look at the server's log at the time of the event.";
        JSON_RPC = "FLEET-JSON-RPC":
            "The server answered the call with a JSON-RPC error.",
            "The tool does not exist, its arguments are invalid, or the server failed; the code is in `error.code`.",
            "Read the message and `error.data`; `tools/list` shows the tool's name and arguments.";
        PROTOCOL = "FLEET-PROTOCOL":
            "The answer is not what the protocol allows, so it could not be read. The tool may have run.",
            "The server, or a proxy in front of it, is broken or is not an MCP server.",
            "Call the tool by hand and look at the answer; correct or update that server.";
        TOOL = "FLEET-TOOL":
            "The tool itself reported that it failed (`isError: true`).",
            "It depends on the tool; its own message is in `error.data`.",
            "Correct the arguments or what the tool depends on, then `mcp-fleet dlq replay` the job.";
        EXPIRED = "FLEET-EXPIRED":
            "The job's deadline passed before the job was done.",
            "The backlog was longer, or an outage lasted longer, than the `deadline` of the envelope allows.",
            "Scale the workers, or submit with a later deadline.";
        CANCELLED = "FLEET-CANCELLED":
            "The job was cancelled.",
            "Someone called `DELETE /jobs/{id}`, `mcp-fleet jobs cancel` or `tasks/cancel`; the event carries the reason that was given.",
            "Submit the job again under another id if it is still wanted.";
        RESULT_OMITTED = "FLEET-RESULT-OMITTED":
            "The job succeeded, but its result was too large for an event and is stored nowhere.",
            "The result exceeds `MCP_MAX_EVENT_BYTES`.",
            "Let the tool return less or store its output itself, or raise `MCP_MAX_EVENT_BYTES` and the topic's `max.message.bytes`.";
    }
    "Calls and hosted servers" {
        SERVER_UNAVAILABLE = "FLEET-SERVER-UNAVAILABLE":
            "The hosted server cannot be reached or is not running; jobs for it wait.",
            "A remote server is down, or the child process died and is being restarted.",
            "`server_status` says why. Jobs go on by themselves when the server answers again.";
        SERVER_BUSY = "FLEET-SERVER-BUSY":
            "The hosted server, or mcp-server, has as many calls in progress as it may have.",
            "More calls arrive than the server completes.",
            "Raise the server's call limit if it can take more; jobs wait meanwhile.";
        PAUSED = "FLEET-PAUSED":
            "Somebody has paused the job, so that it does not start.",
            "A pause of all jobs, or of a server, a tool, a tenant or a filter, is in force.",
            "`mcp-fleet pauses` says who has ordered it and why; `mcp-fleet resume` ends it.";
        UPSTREAM_UNAUTHORIZED = "FLEET-UPSTREAM-UNAUTHORIZED":
            "The hosted server refused the credentials that mcp-server is configured with.",
            "The token in the server's `headers` or `env` is missing, wrong or expired, or there is no access token for it.",
            "Replace the secret, correct `oauth` in the policy file, or host the server again with valid credentials; jobs wait meanwhile.";
        RATE_LIMITED = "FLEET-RATE-LIMITED":
            "The caller has used up its allowance of calls.",
            "More calls were made than the limit allows.",
            "Wait for `retryAfterMs`, or have the limit raised.";
        TOOL_WITHHELD = "FLEET-TOOL-WITHHELD":
            "The tool is withheld, because its definition is not the one that was pinned; its jobs wait.",
            "The hosted server has changed the tool or has added it, and nobody has approved that yet; or the pins have not been read yet.",
            "Look at the change with `mcp-fleet servers pins diff`, and approve or reject it. In the mode `block`, name the new digest in a `[[pin]]` of the policy file.";
        UNKNOWN_SERVER = "FLEET-UNKNOWN-SERVER":
            "No MCP server of that name is hosted.",
            "The name is misspelled, or the server was never hosted or has been removed.",
            "Host it with a `server-init` job or `server_initialize`; `server_status` lists the hosted servers.";
        UNREADABLE_ANSWER = "FLEET-UNREADABLE-ANSWER":
            "The hosted server answered the call, but the answer could not be read. The tool may have run.",
            "The hosted server violates the protocol.",
            "Update or correct that server; the message says what was wrong with the answer.";
        HOSTED_TIMEOUT = "FLEET-HOSTED-TIMEOUT":
            "The hosted server did not answer the call in time.",
            "The tool is slow or hangs.",
            "Raise the call timeout, or let the tool report progress.";
        HOSTED_CONNECTION_LOST = "FLEET-HOSTED-CONNECTION-LOST":
            "The connection to the hosted server was lost during the call.",
            "The child process died or the remote server was cut off; `stderrTail` has the child's last words.",
            "See the server's own log. Calls that may be repeated are repeated once.";
        SERVER_NAME = "FLEET-SERVER-NAME":
            "The hosted server cannot have this name.",
            "Names have 1 to 40 characters of a limited set, contain no `__`, and may not be those of built-in tools.",
            "Choose another name.";
        SERVER_CONFIG = "FLEET-SERVER-CONFIG":
            "The configuration of a hosted server (an entry of `mcpServers`) cannot be used.",
            "A field has the wrong type, contradicts another one, or names something that does not exist.",
            "Correct the field that the message names; docs/hosting.md describes them all.";
        SERVER_START = "FLEET-SERVER-START":
            "The hosted server was started, but did not complete the MCP handshake.",
            "The program exited, is not an MCP server, or took longer than the start timeout; the message has the end of its stderr.",
            "Run the command by hand and correct what it complains about.";
        AMBIGUOUS_EXTENSION = "FLEET-AMBIGUOUS-EXTENSION":
            "Several hosted servers declare the extension that the method belongs to.",
            "The gateway cannot tell which of them is meant.",
            "Host only one server with this extension behind this gateway.";
        TOO_MANY_STREAMS = "FLEET-TOO-MANY-STREAMS":
            "Too many event streams are open.",
            "Clients hold more streams than the server serves at once.",
            "Close streams that are not needed, and connect again later.";
    }
    "Policy" {
        POLICY_COMMAND = "FLEET-POLICY-COMMAND":
            "Policy does not allow this command to be started.",
            "No rule covers the whole command line.",
            "Start the server with `--allow-command`, or add a `[[command]]` to the policy file; `mcp-server policy check` shows what a rule covers.";
        POLICY_DIRECTORY = "FLEET-POLICY-DIRECTORY":
            "Policy does not allow this working directory.",
            "`cwd` is outside the allowed directories once symbolic links are resolved.",
            "Use `--allow-dir`, or `cwd` in the `[[command]]`.";
        POLICY_ENV_FILE = "FLEET-POLICY-ENV-FILE":
            "Policy does not allow this `envFile`.",
            "The file is outside the allowed directories once symbolic links are resolved.",
            "Use `--allow-dir`, or `env_files` in the `[[command]]`.";
        POLICY_ENV = "FLEET-POLICY-ENV":
            "Policy does not allow this environment variable to be set or expanded.",
            "The variable is not in the rule's list, or it is one that changes which program runs.",
            "Use `--allow-env`, or `env` or `expand` in the `[[command]]` or `[[remote]]`.";
        POLICY_SECRET = "FLEET-POLICY-SECRET":
            "Policy does not allow this secret to be used.",
            "`${secret:…}` in a configuration names a secret that the rule does not list.",
            "List it in `secrets` of the `[[command]]` or `[[remote]]`.";
        POLICY_REMOTE = "FLEET-POLICY-REMOTE":
            "Policy does not allow a connection to this remote server.",
            "No rule covers its host, or the rule does not reach addresses of this kind.",
            "Use `--allow-remote`, or add a `[[remote]]` to the policy file.";
        POLICY_LIMIT = "FLEET-POLICY-LIMIT":
            "As many servers are hosted as the policy allows.",
            "`max_servers` is reached.",
            "Remove a server that is no longer needed, or raise `max_servers`.";
        POLICY_FILE = "FLEET-POLICY-FILE":
            "The policy file cannot be used.",
            "It cannot be read, is not valid TOML, has unknown keys, or contains an invalid pattern.",
            "Correct the line that the message names; `mcp-server policy check` tests a file without a server.";
    }
    "Access" {
        NO_AUTHENTICATOR = "FLEET-NO-AUTHENTICATOR":
            "The server does not start, because nothing is configured that tells callers apart.",
            "It listens beyond loopback, or `--access required` is set, and it has neither API keys nor `[[issuer]]` tables, nor `[[certificate]]` tables together with `--tls-client-ca`; or `--access local` is set, which is for loopback.",
            "Make a key with `mcp-fleet keys create` and start with `--access-keys FILE`, add an `[[issuer]]` to the policy file, or add a `[[certificate]]` and set `--tls-client-ca`; docs/access.md has all three. `MCP_ACCESS=open` serves everybody who can reach the port.";
        UNAUTHENTICATED = "FLEET-UNAUTHENTICATED":
            "The request carries no credentials, and this server serves nobody without them.",
            "No `Authorization` header and no client certificate was sent, or the header has a scheme other than `Bearer`.",
            "Send an API key or an access token as `Authorization: Bearer …`; docs/access.md says how to get one.";
        BAD_CREDENTIALS = "FLEET-BAD-CREDENTIALS":
            "The credentials of the request were refused.",
            "The key or token is unknown, revoked or expired, was issued for another audience or by another issuer, or its signature is wrong; or no `[[certificate]]` covers the client certificate, or it was withdrawn while its connection was open.",
            "Get new credentials for this server; the message and the server's log say which check failed.";
        MALFORMED_CREDENTIALS = "FLEET-MALFORMED-CREDENTIALS":
            "The credentials of the request could not be read.",
            "The request has more than one `Authorization` header, its value is not a bearer token, or the URL carries credentials.",
            "Send exactly one header of the form `Authorization: Bearer <key or token>`.";
        NO_ISSUER_KEYS = "FLEET-NO-ISSUER-KEYS":
            "Access tokens of this issuer cannot be checked at the moment.",
            "The issuer's key set has never been read: the issuer is down, or the URL or file of its key set is wrong.",
            "Try again after the time in `Retry-After`. If it persists, check the `[[issuer]]` and that the server can reach it.";
        ISSUER_KEYS = "FLEET-ISSUER-KEYS":
            "The key set of an issuer cannot be used.",
            "It is not a JSON Web Key Set, or holds no public key for an algorithm that the `[[issuer]]` allows.",
            "Correct `jwks_url`, `jwks_file` or `algorithms` of the `[[issuer]]` that the message names.";
        DENIED = "FLEET-DENIED":
            "The principal may not do this.",
            "A rule denies it, or no rule allows it; the message names the rule.",
            "Have a `[[rule]]` added to the policy file; `mcp-server policy check` shows what decides a call.";
        INSUFFICIENT_SCOPE = "FLEET-INSUFFICIENT-SCOPE":
            "The access token lacks scopes that the operation needs.",
            "The rule that would allow it requires scopes, which the message names, and the token was issued without them.",
            "Get a token with all scopes that the message names.";
        APPROVAL_REQUIRED = "FLEET-APPROVAL-REQUIRED":
            "The operation needs the approval of somebody else.",
            "A rule with `effect = \"approve\"` covers it.",
            "Ask somebody who may approve it, or have the rule changed.";
        BAD_SIGNATURE = "FLEET-BAD-SIGNATURE":
            "The job's signature does not fit the job, so the job was not run.",
            "The record, its job id or its calls were changed after the job was submitted, or its signature was taken from another job, topic or fleet.",
            "Find out who may write to the jobs topic (docs/access.md); submit the job again through the server.";
        UNKNOWN_SIGNATURE = "FLEET-UNKNOWN-SIGNATURE":
            "The job was signed with a key that the server does not have.",
            "The key is that of another fleet, or keys are being replaced and this server has not read the new one.",
            "Give every server the public key before any server signs with the private one; then replay the dead letter.";
        WORKER_REFUSED = "FLEET-WORKER-REFUSED":
            "The worker may not present the jobs of others, so its jobs wait.",
            "Jobs are signed here, and the worker's principal lacks the right `act-as`, or the worker is of a version that does not pass signatures on.",
            "Give the worker a key with the role `fleet-worker` or a rule for `act-as`; upgrade workers before servers sign.";
        SIGNING_KEYS = "FLEET-SIGNING-KEYS":
            "The file of signing keys cannot be used.",
            "It is not PEM, or holds something else than Ed25519 keys.",
            "Make one with `mcp-fleet keys init`, or with `openssl genpkey -algorithm ed25519`.";
        VAULT_KEYS = "FLEET-VAULT-KEYS":
            "The keys that seal the credentials of principals cannot be used.",
            "The file is empty, has more than two keys, or a line that is not 32 bytes in Base64.",
            "Write a line with `openssl rand -base64 32`; to replace a key, put the new one before it and remove the old one later.";
        OWN_APPROVAL = "FLEET-OWN-APPROVAL":
            "The caller has submitted the job, and can't approve it.",
            "Approval is the word of somebody else than who asks.",
            "Ask another principal that has the right `jobs.approve`.";
        NOT_PENDING = "FLEET-NOT-PENDING":
            "The job is not awaiting approval, or no longer is.",
            "Somebody has decided, it was cancelled, or its time has passed; or no rule asks for approval.",
            "Look at the job's state; submit it again if it should still run.";
        APPROVAL_DENIED = "FLEET-APPROVAL-DENIED":
            "The job was not approved, so it has not run.",
            "Somebody who may decide has denied it; the message has the reason.",
            "Talk to them, then submit a job that they will approve.";
        APPROVAL_EXPIRED = "FLEET-APPROVAL-EXPIRED":
            "Nobody has approved the job in time.",
            "`MCP_APPROVAL_TTL` has passed since it was submitted, or its deadline has.",
            "Submit it again, and tell somebody who may approve it.";
        AUDIT_UNAVAILABLE = "FLEET-AUDIT-UNAVAILABLE":
            "The operation can't be recorded now, so it is not done.",
            "The audit log is required, and its file or topic can't be written. Jobs wait meanwhile.",
            "Make room for the file, or bring the brokers back; the log of the server says what is wrong. It goes on by itself.";
        KEYS_FILE = "FLEET-KEYS-FILE":
            "The file of API keys cannot be used.",
            "It is not valid TOML, has unknown fields, or holds an entry whose id or digest is invalid or used twice.",
            "Correct the entry that the message names, or make a new file with `mcp-fleet keys create`.";
    }
    "Kafka" {
        KAFKA_UNREACHABLE = "FLEET-KAFKA-UNREACHABLE":
            "No Kafka broker answers.",
            "`KAFKA_BROKERS` is wrong, the brokers are down, or a firewall or TLS setting is in the way.",
            "Check that the address is reachable from this host and that the broker advertises one that is.";
        KAFKA_PROPERTY = "FLEET-KAFKA-PROPERTY":
            "A Kafka property cannot be set to this value.",
            "The property is unknown to librdkafka, or it would break a delivery guarantee.",
            "Remove or correct the `KAFKA_PROPERTY_…` variable that the message names.";
        NO_TOPIC = "FLEET-NO-TOPIC":
            "The topic does not exist.",
            "It was never created, its name is misspelled, or this client may not see it.",
            "Create the topics with `mcp-fleet topics create`.";
        COMPACTED_TOPIC = "FLEET-COMPACTED-TOPIC":
            "The jobs topic is compacted, so Kafka would delete jobs that have not run.",
            "`cleanup.policy` of the topic contains `compact`.",
            "Set `cleanup.policy=delete`; `MCP_ALLOW_COMPACTED_TOPIC=true` accepts the loss.";
        TOPIC_NOT_CREATED = "FLEET-TOPIC-NOT-CREATED":
            "A topic could not be created or enlarged.",
            "The broker refused; the message has its reason.",
            "Grant the permission, correct the number of partitions or replicas, or create the topic yourself.";
        LOG_RESET = "FLEET-LOG-RESET":
            "A topic ends before the position that had been read: it was deleted and created again.",
            "Someone recreated the topic, or the cluster lost data.",
            "Nothing: reading starts from the beginning of the new topic. See docs/offsets.md.";
        NO_CONTACT = "FLEET-NO-CONTACT":
            "There is no contact with the consumer group, so nothing is written or committed.",
            "The group coordinator is down, or this process was suspended for longer than a third of the session timeout.",
            "Nothing if the coordinator returns. If it lasts, see the runbook's entry on lost contact.";
        KAFKA_REFUSED = "FLEET-KAFKA-REFUSED":
            "Kafka refused a request or a record.",
            "The client has no permission, or the record is larger than the topic's `max.message.bytes`.",
            "Grant the permission or raise the limit that the message names.";
    }
    "Settings" {
        SETTING = "FLEET-SETTING":
            "A setting is missing or cannot be used.",
            "An environment variable or flag has a value that is not of the expected form, or contradicts another one.",
            "Correct the setting that the message names; docs/configuration.md lists them all.";
        SERVER_URL = "FLEET-SERVER-URL":
            "`MCP_SERVER_URL`, or a header configured for it, cannot be used.",
            "It is not an http or https URL with a host, or the header is not valid.",
            "Correct the value that the message names.";
        LISTEN = "FLEET-LISTEN":
            "The address cannot be listened on.",
            "Another process uses the port, or this one has no permission for it.",
            "Choose another port with `--port` or `PORT`, or stop the other process.";
        TLS_FILES = "FLEET-TLS-FILES":
            "A certificate, private key, authority or revocation list cannot be used.",
            "The file that the message names is missing or unreadable, is not PEM, or does not belong to the others: a key must be that of its certificate, and a revocation list that of an authority. While the process runs, a file was changed before the others that belong to it.",
            "Correct the file. At the start the process ends; later, what was read before stays in force until the files can be used.";
    }
    "A fleet on one machine" {
        BROKER_MISSING = "FLEET-BROKER-MISSING":
            "`mcp-fleet` cannot find the embedded broker, the program `mcp-fleet-broker`.",
            "It was not built, or was not copied together with `mcp-fleet`.",
            "Build it with `cargo build -p mcp-fleet-broker` and put it into the directory of `mcp-fleet` or one on `PATH`, or name a Kafka with `--brokers`.";
        BROKER_VERSION = "FLEET-BROKER-VERSION":
            "The embedded broker does not know the format of its data directory.",
            "A newer version of `mcp-fleet-broker` has written to the directory, or its file `format` was changed.",
            "Start the version that wrote the data, or choose another `--data-dir`. Nothing was changed.";
        BROKER_DATA = "FLEET-BROKER-DATA":
            "The embedded broker cannot read the data in its directory.",
            "The file `broker.db` is damaged, or is not a database.",
            "Restore the directory from a copy, or choose another `--data-dir`.";
    }
    "API" {
        NO_SERVER = "FLEET-NO-SERVER":
            "No mcp-server responds at the URL.",
            "The server is not running, or `--server` or `MCP_SERVER_URL` is wrong.",
            "Start mcp-server, or correct the URL.";
        UNKNOWN_TOOL = "FLEET-UNKNOWN-TOOL":
            "The server offers no tool of that name to this caller.",
            "The name is misspelled, the hosted server of the tool is not running, or the caller may not use the tool.",
            "`mcp-fleet tools list` lists the tools by name, and `mcp-fleet servers list` the hosted servers.";
        TOOL_ARGUMENTS = "FLEET-TOOL-ARGUMENTS":
            "The arguments on the command line do not suit the tool.",
            "An argument is missing, misspelled or of another type than the tool's schema asks for.",
            "`mcp-fleet tools show` prints the arguments of a tool; `KEY:=JSON` and `--args` take any JSON.";
        BAD_REQUEST = "FLEET-BAD-REQUEST":
            "The request could not be read.",
            "A parameter, header or part of the body is not valid.",
            "Correct what the detail names; `GET /openapi.json` describes every request.";
        FORBIDDEN = "FLEET-FORBIDDEN":
            "The request is not meant for this server.",
            "Its `Host` or `Origin` is not one that the server serves.",
            "Use `--allowed-hosts` or `--allowed-origins` to add the name.";
        NO_SUCH_JOB = "FLEET-NO-SUCH-JOB":
            "No job of this id is known, or the caller may not see it.",
            "The id is misspelled, the job is older than what the ledger keeps, or it is someone else's.",
            "Check the id and the credentials; a job written directly to Kafka is known once a worker has reached it.";
        RECORD_GONE = "FLEET-RECORD-GONE":
            "The job is known, but its record is no longer in the jobs topic, so its arguments are not known.",
            "The topic's retention has deleted the record, or the topic was deleted and created again.",
            "Submit the job again with its arguments; a dead letter has them, too. Raise `retention.ms` of the jobs topic to keep records for longer.";
        NO_SUCH_LETTER = "FLEET-NO-SUCH-LETTER":
            "There is no dead letter at this position, or the caller may not see it.",
            "The position is misspelled, the letter was deleted, or its job is someone else's.",
            "`GET /dead-letters` lists the newest letters with their positions.";
        NO_SUCH_PAUSE = "FLEET-NO-SUCH-PAUSE":
            "No pause with this id is in force.",
            "The id is misspelled, or the pause has ended.",
            "`GET /pauses` and `mcp-fleet pauses` list the pauses in force with their ids.";
        NO_SUCH_TOOL = "FLEET-NO-SUCH-TOOL":
            "No tool of this name is offered, or the caller may not call it.",
            "The name is misspelled, or the tool's server is not hosted now.",
            "`GET /tools` lists the tools that the caller may call.";
        NO_SUCH_PATH = "FLEET-NO-SUCH-PATH":
            "There is nothing at this path.",
            "The path is misspelled.",
            "`GET /openapi.json` lists the paths.";
        JOBS_OFF = "FLEET-JOBS-OFF":
            "This server does not accept jobs.",
            "`KAFKA_BROKERS` is not set.",
            "Start mcp-server with `KAFKA_BROKERS`.";
        METHOD_NOT_ALLOWED = "FLEET-METHOD-NOT-ALLOWED":
            "The path does not support this HTTP method.",
            "The request uses the wrong method.",
            "Use one of the methods in the answer's `Allow` header.";
        BODY_TIMEOUT = "FLEET-BODY-TIMEOUT":
            "The body of the request did not arrive in time.",
            "The client or the network is too slow.",
            "Send the request again.";
        TOO_LATE = "FLEET-TOO-LATE":
            "The job has already ended in another way.",
            "It was cancelled after its end.",
            "Nothing: the answer carries the job as it is.";
        PIN_CONFLICT = "FLEET-PIN-CONFLICT":
            "The decision about the tool is not possible now.",
            "The tool has changed since it was looked at, is as pinned, or may be allowed by the policy file only.",
            "Look at the tool again with `mcp-fleet servers pins diff`, and decide on what it shows.";
        UNSUPPORTED_MEDIA_TYPE = "FLEET-UNSUPPORTED-MEDIA-TYPE":
            "The body must be JSON.",
            "The request has another `Content-Type`.",
            "Send `Content-Type: application/json`.";
        BAD_JOB = "FLEET-BAD-JOB":
            "The job in the request is not acceptable.",
            "A field is missing, unknown or out of range.",
            "Correct the field that the detail names.";
        INTERNAL = "FLEET-INTERNAL":
            "The server failed to answer.",
            "A fault of the server or of its ledger; the server's log has the details.",
            "Try again; if the error persists, report it together with the log.";
        NOT_READY = "FLEET-NOT-READY":
            "The server is not ready to answer about jobs.",
            "It is still reading the events topic, or a topic does not exist yet.",
            "Ask again after the time in `Retry-After`.";
        LEDGER_UNAVAILABLE = "FLEET-LEDGER-UNAVAILABLE":
            "The server cannot answer about jobs, because the database of its ledger is away. Calls and jobs go on.",
            "PostgreSQL is down, restarting, full or unreachable, refuses the server's password or certificate, or is used by another fleet.",
            "Bring the database back, or correct `MCP_LEDGER`; the server's log names the reason. The ledger then continues where it was.";
        KAFKA_UNAVAILABLE = "FLEET-KAFKA-UNAVAILABLE":
            "The server cannot reach Kafka, so the job was not accepted.",
            "The brokers are down or unreachable.",
            "Submit again later: nothing was written.";
    }
}
