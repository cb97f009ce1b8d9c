-- Fields of a record that is still there. See `Records.keep`.
-- KEYS: 1 record
-- ARGV: fields to set; in slices, since Lua's stack is small
-- A record that is gone stays gone: these fields alone would be none.
if redis.call('EXISTS', KEYS[1]) == 1 then
  for first = 1, #ARGV, 1000 do
    redis.call('HSET', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
  end
end
