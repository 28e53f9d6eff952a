-- Posts one body over and over, and prints what wrk saw as one line of JSON.
-- The body, its content type and the Accept header come from the environment.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*all")
wrk.headers["Content-Type"] = os.getenv("CONTENT_TYPE")
wrk.headers["Accept"] = os.getenv("ACCEPT")

done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"rate": %f, "p50": %f, "p99": %f, "failed": %d}\n',
    1e6 * summary.requests / summary.duration,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
