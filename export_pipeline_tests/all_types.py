"""A table with a column of every type, and the values that break exporters."""

from __future__ import annotations

TYPES = """
CREATE EXTENSION hstore SCHEMA public;
CREATE EXTENSION citext SCHEMA public;
CREATE TYPE public.mood AS ENUM ('fine', '=1+1', 'two words', '', E'line\\nbreak');
CREATE TYPE public.pair AS (word text, document json, number numeric);
CREATE DOMAIN public.amount AS numeric(12, 4);
CREATE DOMAIN public.shout AS text;
CREATE DOMAIN public.louder AS shout;
CREATE DOMAIN public.document AS json;
CREATE DOMAIN public.deeper AS document;
CREATE TYPE public.weights AS RANGE (subtype = float8);
"""

ALL_CONTROL_CHARACTERS = "(SELECT string_agg(chr(i), '' ORDER BY i) FROM generate_series(1, 31) AS i) || chr(127)"
TEXTS = [
    "''", "'NULL'", "' '", "'null'", r"'\N'", r"'\.'", "'\"'", "','", "'a,b'", "E'a\\r\\nb'", "E'\\n'", "E'\\r'",
    "'=1+1'", "'+1'", "'-1'", "'@SUM(A1)'", "E'\\t=1'", "E'\\r=1'", "E'\\n=1'", "''''", "'''=1'", "''''''",
    "'\uff1d1'", "'\uff0b1'", "'\uff0d1'", "'\uff201'", "'\ufeff'", "'\ufeffx'", "'\u2028'", "'\U0001f600'",
    "'\u6f22\u5b57 \u05e9\u05dc\u05d5\u05dd \u0627\u0644'", "'e\u0301'", ALL_CONTROL_CHARACTERS,
    r"'\u0041'", r"'\x41'", "repeat('x', 100000)",
]  # fmt: skip
JSONS = [
    """E'{"a":\\n [1,\\r\\n 2],\\t"b" : "x\\\\ny"}'""", "'1e400'", "'-1e-400'", "'{\"a\":1,\"a\":2}'", "'\"\"'",
    "'-5'", "'[]'", "' {} '", "'\"=1+1\"'", "'123456789012345678901234567890.0123456789'", "E'\\n\\n[null]\\r'",
]  # fmt: skip
TIMES = [
    "'infinity'", "'-infinity'", "'0044-03-15 12:00:00 BC'", "'2024-02-29 23:59:59.999999'", "'294276-12-31 23:59:59'",
    "'0001-01-01'", "'1900-01-01 00:00:00.1'", "'10000-01-01'",
]  # fmt: skip
TIMES_OF_ARROW = [
    "'2024-02-29 23:59:59.999999'", "'0001-01-01 00:00:00'", "'9999-12-31 23:59:59.999999'", "'1969-12-31 23:59:59.5'",
]  # fmt: skip
NUMERICS = [
    "'NaN'", "'Infinity'", "'-Infinity'", "0.000", "1e130", "-0.00000000000000000001", "'1e-16000'",
    "123456789012345678901234567890.123456789012345678901234567890",
]  # fmt: skip
BIG = ["99999999999999999999999999.999999999999", "-0.000000000001", "0"]

#: Column → its type and values; NULL is added to each.
COLUMNS: dict[str, tuple[str, list[str]]] = {
    "a_boolean": ("boolean", ["true", "false"]),
    "a_smallint": ("smallint", ["-32768", "32767"]),
    "an_integer": ("integer", ["-2147483648", "2147483647"]),
    "a_bigint": ("bigint", ["9223372036854775807", "-9223372036854775808", "9007199254740993"]),
    "an_oid": ("oid", ["4294967295"]),
    "a_numeric": ("numeric", NUMERICS),
    "a_decimal": ("numeric(38,12)", BIG),
    "a_decimal_with_nan": ("numeric(12,4)", ["'NaN'", "12345678.9012"]),
    "a_huge_decimal": ("numeric(60,20)", ["1e39", "-0.00000000000000000001"]),
    "a_rounded_decimal": ("numeric(5,-2)", ["12300"]),
    "a_tiny_decimal": ("numeric(3,5)", ["0.00123"]),
    "a_real": ("real", ["1e-45", "3.4028235e38", "'NaN'", "'Infinity'", "'-Infinity'", "0.1", "'-0'", "16777217"]),
    "a_double": ("float8", ["5e-324", "1.7976931348623157e308", "'NaN'", "'Infinity'", "'-Infinity'", "0.1", "'-0'"]),
    "a_money": ("money", ["'-92233720368547758.08'", "'1.5'"]),
    "a_text": ("text", TEXTS),
    "a_varchar": ("varchar(100000)", TEXTS),
    "a_char": ("char(8)", ["'a'", "''", "'=1'", "E'\\t'", "'  b'", "''''"]),
    "a_letter": ('"char"', ["'='", "''", "'a'"]),
    "a_name": ("name", ["'=1+1'", "''"]),
    "a_citext": ("citext", TEXTS),
    "a_bytea": ("bytea", [r"'\x'", r"'\x00ff5c2227'", "decode(repeat('00ff', 5000), 'hex')"]),
    "a_date": ("date", ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'5874897-12-31'", "'2024-02-29'"]),
    "a_date_of_arrow": ("date", ["'0001-01-01'", "'9999-12-31'", "'1969-12-31'", "'2024-02-29'"]),
    "a_timestamp": ("timestamp", TIMES),
    "a_timestamp_of_arrow": ("timestamp(6)", TIMES_OF_ARROW),
    "a_timestamp_0": ("timestamp(0)", TIMES_OF_ARROW[:1]),
    "a_timestamptz": ("timestamptz", TIMES),
    "a_timestamptz_of_arrow": ("timestamptz", TIMES_OF_ARROW),
    "a_time": ("time", ["'24:00'", "'00:00'", "'23:59:59.999999'"]),
    "a_time_of_arrow": ("time(3)", ["'00:00'", "'23:59:59.999'"]),
    "a_timetz": ("timetz", ["'24:00-15:59'", "'00:00:00.000001+15:59'"]),
    "an_interval": ("interval", ["'178000000 years'", "'-1 mon +2 days -03:04:05.6'", "'0'", "'infinity'"]),
    "a_uuid": ("uuid", ["'FFFFFFFF-FFFF-ffff-ffff-ffffffffffff'", "'00000000-0000-0000-0000-000000000000'"]),
    "a_json": ("json", JSONS),
    "a_jsonb": ("jsonb", [*JSONS, "'-1e-400'", "'\"\\u00e9\\\\\"'"]),
    "a_document": ("document", JSONS),
    "a_deeper_document": ("deeper", JSONS),
    "some_json": ("json[]", ["""ARRAY[E'{"a":\\n1}', '2', NULL]::json[]"""]),
    "some_texts": (
        "text[]",
        ["'{}'", "ARRAY['', 'NULL', NULL, '=1', 'a,b', '\"', '\\', E'\\n']", "'{{a,b},{c,NULL}}'"],
    ),
    "some_integers": ("int4[]", ["'{{1,2},{3,4}}'", "'{NULL}'", "'{{{1}}}'"]),
    "some_doubles": ("float8[]", ["'{NaN,Infinity,-Infinity,1e-300}'"]),
    "some_moods": ("mood[]", ["ARRAY['=1+1', '', NULL]::mood[]"]),
    "some_times": ("timestamptz[]", ["'{infinity,0044-03-15 BC,2024-01-01}'"]),
    "a_mood": ("mood", ["'fine'", "'=1+1'", "'two words'", "''", "E'line\\nbreak'"]),
    "an_inet": ("inet", ["'::1'", "'10.0.0.1/8'", "'::ffff:1.2.3.4/128'"]),
    "a_cidr": ("cidr", ["'10.0.0.0/8'", "'::/0'"]),
    "a_macaddr": ("macaddr", ["'08:00:2b:01:02:03'"]),
    "a_macaddr8": ("macaddr8", ["'08:00:2b:01:02:03:04:05'"]),
    "a_range": ("int4range", ["'empty'", "'[1,5)'", "'(,)'"]),
    "a_numrange": ("numrange", ["'[1.10,2.20]'", "'(,5)'"]),
    "a_tstzrange": ("tstzrange", ["'[2024-01-01,infinity]'", "'(,2024-01-01)'"]),
    "an_own_range": ("weights", ["'[1.5,NaN]'"]),
    "a_multirange": ("int4multirange", ["'{}'", "'{[1,3),[5,9)}'"]),
    "an_own_multirange": ("weights_multirange", ["'{[1.5,2.5]}'"]),
    "a_pair": ("pair", ["""ROW('=1', E'{"a":\\n 1e400}', 'NaN')::pair""", "ROW(NULL, NULL, NULL)", "ROW('', '1', 1)"]),
    "some_pairs": ("pair[]", ["""ARRAY[ROW('a', E'[1,\\r\\n2]', 1)::pair, NULL]"""]),
    "an_amount": ("amount", ["12345678.9012", "-0.0001"]),
    "a_shout": ("shout", TEXTS),
    "a_louder": ("louder", TEXTS),
    "a_bit": ("bit(3)", ["B'101'"]),
    "a_varbit": ("bit varying", ["B''", "B'11111'"]),
    "a_tsvector": ("tsvector", ["'a:1A fat:2 ''it''''s'''", "''"]),
    "a_tsquery": ("tsquery", ["'fat & !rat'", "'''=1'''"]),
    "a_point": ("point", ["'(1e-300,NaN)'", "'(-0.1,2)'"]),
    "a_path": ("path", ["'[(0,0),(1,1)]'"]),
    "a_jsonpath": ("jsonpath", ["'$.\"a\"[*] ? (@ > 1)'"]),
    "an_lsn": ("pg_lsn", ["'FFFFFFFF/FFFFFFFF'"]),
}
#: What JSON tells in its own words: null for a JSON null, an array from 1, an object for what casts itself to json.
MORE_COLUMNS: dict[str, tuple[str, list[str]]] = {
    "a_json_null": ("jsonb", ["'null'"]),
    "an_array_from_0": ("text[]", ["'[0:1]={a,b}'"]),
    "an_hstore": ("hstore", ['\'a=>1, b=>NULL, "=c"=>"x\ny"\'', "''"]),
}
ROWS = max(len(values) for _, values in COLUMNS.values()) + 1


def create(columns: dict[str, tuple[str, list[str]]]) -> str:
    """A table with a row for each number of a value, and a last one of NULL."""
    definitions = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
    rows = [
        ["NULL"] * len(columns) if number == ROWS - 1 else [v[number % len(v)] for _, v in columns.values()]
        for number in range(ROWS)
    ]
    inserts = [f"INSERT INTO things VALUES ({number}, 'ada', {', '.join(row)});" for number, row in enumerate(rows)]
    return f"{TYPES}; CREATE TABLE public.things (id int PRIMARY KEY, user_id text, {definitions});\n" + "\n".join(
        inserts
    )
