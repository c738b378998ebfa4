--- AlpacaEval's order coin: the same pair is switched here as there, so that
--- judgements can be compared. switched = Python's
--- random.Random("is_switched_outputs" + prompt + seed).choices([False, True])[0]:
--- MT19937 seeded by the text's bytes and their SHA-512 (CPython's version-2 string
--- seeding). The text's SHA-512 and the generator are written out here because
--- nothing else needs them.
local coin = {}

-- SHA-512 (FIPS 180-4). The constants are the first 64 bits of the fractional parts
-- of the cube and square roots of the first primes.
local K = {
  0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc, 0x3956c25bf348b538,
  0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118, 0xd807aa98a3030242, 0x12835b0145706fbe,
  0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2, 0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235,
  0xc19bf174cf692694, 0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
  0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5, 0x983e5152ee66dfab,
  0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4, 0xc6e00bf33da88fc2, 0xd5a79147930aa725,
  0x06ca6351e003826f, 0x142929670a0e6e70, 0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed,
  0x53380d139d95b3df, 0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
  0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30, 0xd192e819d6ef5218,
  0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8, 0x19a4c116b8d2d0c8, 0x1e376c085141ab53,
  0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8, 0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373,
  0x682e6ff3d6b2b8a3, 0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
  0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b, 0xca273eceea26619c,
  0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178, 0x06f067aa72176fba, 0x0a637dc5a2c898a6,
  0x113f9804bef90dae, 0x1b710b35131c471b, 0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc,
  0x431d67c49c100d4c, 0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
}

local function ror(x, n) return (x >> n) | (x << (64 - n)) end

---@param text string
---@return string 64 bytes
function coin.sha512(text)
  local h = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1, 0x510e527fade682d1,
    0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
  }
  local padded = text .. "\128" .. ("\0"):rep((111 - #text) % 128) .. (">I8I8"):pack(0, 8 * #text)
  local w = {}
  for at = 1, #padded, 128 do
    for i = 1, 16 do w[i] = (">i8"):unpack(padded, at + 8 * (i - 1)) end
    for i = 17, 80 do
      local x, y = w[i - 15], w[i - 2]
      w[i] = w[i - 16] + (ror(x, 1) ~ ror(x, 8) ~ (x >> 7)) + w[i - 7] + (ror(y, 19) ~ ror(y, 61) ~ (y >> 6))
    end
    local a, b, c, d, e, f, g, z = table.unpack(h)
    for i = 1, 80 do
      local t1 = z + (ror(e, 14) ~ ror(e, 18) ~ ror(e, 41)) + ((e & f) ~ (~e & g)) + K[i] + w[i]
      local t2 = (ror(a, 28) ~ ror(a, 34) ~ ror(a, 39)) + ((a & b) ~ (a & c) ~ (b & c))
      z, g, f, e, d, c, b, a = g, f, e, d + t1, c, b, a, t1 + t2
    end
    for i, v in ipairs { a, b, c, d, e, f, g, z } do h[i] = h[i] + v end
  end
  return (">i8i8i8i8i8i8i8i8"):pack(table.unpack(h))
end

local N, M, WORD = 624, 397, 0xffffffff

local function init_genrand(seed)
  local mt = { [0] = seed & WORD }
  for i = 1, N - 1 do mt[i] = (1812433253 * (mt[i - 1] ~ (mt[i - 1] >> 30)) + i) & WORD end
  return mt
end

-- MT19937's init_by_array; key[0] is the least significant word.
local function init_by_array(key, length)
  local mt = init_genrand(19650218)
  local i, j = 1, 0
  local function wrap()
    i, j = i + 1, j + 1
    if i >= N then
      mt[0] = mt[N - 1]
      i = 1
    end
  end
  for _ = 1, math.max(N, length) do
    mt[i] = ((mt[i] ~ ((mt[i - 1] ~ (mt[i - 1] >> 30)) * 1664525)) + key[j] + j) & WORD
    wrap()
    if j >= length then j = 0 end
  end
  for _ = 1, N - 1 do
    mt[i] = ((mt[i] ~ ((mt[i - 1] ~ (mt[i - 1] >> 30)) * 1566083941)) - i) & WORD
    wrap()
  end
  mt[0] = 0x80000000
  return mt
end

-- The k-th output of the first block (k from 0): only two are needed.
local function output(mt, k)
  local y = (mt[k] & 0x80000000) | (mt[k + 1] & 0x7fffffff)
  local x = mt[k + M] ~ (y >> 1) ~ ((y & 1) * 0x9908b0df)
  x = x ~ (x >> 11)
  x = x ~ ((x << 7) & 0x9d2c5680)
  x = x ~ ((x << 15) & 0xefc60000)
  return (x ~ (x >> 18)) & WORD
end

---Python's random.Random(text).random().
---@param text string
---@return number u in [0, 1)
function coin.uniform(text)
  local bytes = text .. coin.sha512(text)
  local key, length = {}, 0
  for last = #bytes, 1, -4 do
    local word = bytes:sub(math.max(1, last - 3), last)
    key[length] = (">I" .. #word):unpack(word)
    length = length + 1
  end
  while length > 1 and key[length - 1] == 0 do length = length - 1 end
  local mt = init_by_array(key, length)
  local a, b = output(mt, 0) >> 5, output(mt, 1) >> 6
  return (a * 67108864.0 + b) / 9007199254740992.0
end

---Whether the two answers are shown in the other order.
---@param prompt string
---@param seed? integer AlpacaEval's is 0
---@return boolean
function coin.switched(prompt, seed)
  return coin.uniform("is_switched_outputs" .. prompt .. tostring(seed or 0)) >= 0.5
end

return coin
