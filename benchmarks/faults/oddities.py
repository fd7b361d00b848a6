"""What is odd: values, headers, paths and bodies that no page of ours sends. `mutate.py` draws from these."""

# fmt: off
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get",
           "X" * 300)
API = "/gradio_api"
EVENT_PATHS = ("/run/predict", "/queue/join", "/api/predict", "/run/{handler}", "/api/{handler}", "/call/{handler}",
               "/call/v2/{handler}")
TYPES = ("application/json", "text/plain", "", "application/json; charset=utf-16", "multipart/form-data; boundary=x",
         "application/x-www-form-urlencoded", "application/xml", "application/octet-stream",
         "application/json, text/html", "x" * 2000)
EVENT_DATA = (None, [], {}, "x", 1, True, {"index": 0, "liked": True, "value": "x"},
              {"index": [0, 0], "value": "x", "selected": True}, {"index": -1, "liked": "x"},
              {"index": 1e308, "value": None}, {"index": {"a": []}, "liked": []},
              {"value": {"text": [1]}, "index": 1, "previous_value": []}, {"_data": {}, "target": 1},
              {"index": True, "liked": None}, {"index": "0", "value": 5}, {"index": [[[]]], "value": "x" * 5000})
DEEP = 3000  # levels of nesting
VALUES = (None, True, False, 0, 1, 2, 3, 4, 5, -1, 2.5, 1e-9, 1e308, 10**30, -(2**63), float("nan"), float("inf"), "",
          "a", "b", "1", "Hello", "true", "<b>x</b>", "a\x00b", "\ud800", "x" * 5000, "x" * 200_000, "漢" * 3000,
          "\u202e", "![](http://elsewhere.example/x.png)", "' or 1=1--", [], {}, [[]], [None], [[0, 1]], {"value": 1},
          ["more helpful"] * 40, {"__type__": "update", "value": 1}, [{"role": "user", "content": "x"}],
          [{"role": "system", "content": [{"type": "file", "file": {"path": "/etc/passwd"}}]}])
BODIES = {
    "not json": b"<xml>&amp;</xml>",
    "empty": b"",
    "deep list": b'{"data": ' + b"[" * DEEP + b"]" * DEEP + b', "fn_index": 4}',
    "deep object": b'{"data": [' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b'], "fn_index": 4, "session_hash": "x"}',
}
ADDED = {
    "keys": b"," + b",".join(b'"k%d": 1' % i for i in range(20_000)),
    "huge": b', "x": "' + b"a" * 3_000_000 + b'"',
}
UPLOAD_NAMES = ("x.txt", "../../x.txt", "/etc/cron.d/x", "x\x00.txt", "a" * 3000, "", "x.html", ".env", "nudge.db")
QUERIES = ("", "?shared=1", "?shared=%00", "?shared=" + "a" * 5000, "?__theme=dark", "?view=api", "?deep_link=x",
           "?__lang=zh", "?shared[]=1&shared=2", "?" + "a&" * 3000, "?admin=1", "?token=x", "?%ff=%fe")
PAGES = ("/", "/config", "/healthz", "/readyz", "/favicon.ico", "/manifest.json", "/theme.css", "/robots.txt",
         f"{API}/info", f"{API}/app_id", f"{API}/startup-events", "/openapi.json", "/docs", "/admin", "/login",
         "/logout", "/login/huggingface")
WAYS = ("/file={}", "/file={}", "/file/{}", "/static/{}", "/assets/{}", "/proxy={}", "/stream/{}", "/theme.css?x={}",
        "/deep_link?path={}", "/custom_component/{}", "/svelte/{}", "/monitoring/{}", "/../{}",
        "/upload_progress?upload_id={}", "/dev/reload?{}", "/favicon.ico?{}")
DOTS = ("", "", "", "..%2f" * 6, "../" * 6, "%2e%2e/" * 6, "..%5c" * 4, "....//" * 3, "/", "%00")
HEADERS = (("Range", "bytes=0-"), ("Range", "bytes=-1"), ("Range", "bytes=5-1"),
           ("Range", "bytes=" + ",".join(["0-"] * 200)), ("Range", "x"), ("Origin", "http://evil.example"),
           ("Origin", "null"), ("Origin", "x" * 5000), ("Sec-Fetch-Site", "cross-site"),
           ("Sec-Fetch-Site", "same-site"), ("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-For", "\x01, ::1"),
           ("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Prefix", "/../x"),
           ("Forwarded", "for=127.0.0.1;host=localhost"), ("X-Real-IP", "127.0.0.1"),
           ("Host", "localhost.evil.example"),
           ("Host", "evil.example"), ("Host", ""), ("Host", "[::1"), ("Host", "a" * 3000),
           ("Host", "10.0.0.1:99999"), ("X-Huge", "a" * 60_000), ("Cookie", "nudge_id=" + "y" * 43),
           ("Cookie", "nudge_id=" + "y" * 9000), ("Cookie", "\xff=\xfe; nudge_id"),
           ("Cookie", "nudge_id=a; nudge_id=b"), ("Accept-Language", "zh-CN,zh;q=0.9"),
           ("Accept-Language", "x" * 5000), ("Accept-Language", ";q=;,,"), ("Content-Length", "abc"),
           ("Content-Length", "-1"), ("Content-Length", "99999999999"), ("Transfer-Encoding", "gzip"),
           ("Expect", "100-continue"), ("Upgrade", "websocket"), ("Connection", "Upgrade"),
           ("Authorization", "Basic eDp4"), ("Authorization", "Bearer x"), ("If-None-Match", "*"),
           ("If-Modified-Since", "x"), ("X-HTTP-Method-Override", "DELETE"), ("X-Gradio-User", "x"),
           ("X-IP-Token", "x"), ("Referer", "http://evil.example/?secret"), ("Accept-Encoding", "gzip"),
           ("Content-Type", "application/json\x0bx"), ("X Bad", "x"), ("", "x"))
FILE_EXTRAS = ({}, {}, {"orig_name": "x.txt"}, {"is_stream": True}, {"size": -1, "mime_type": 5},
               {"url": None, "path": None})
WORDS = ("x", "", 0, -1, 1, 2, 3, 7, 10**6, 2**63, 10**30, "null", "../..", "%2e%2e", "a" * 300, "é漢\u202e", "{}",
         "$(id)", "' or 1=1--", "<script>")
BODY_TWISTS = ("cut", "not json", "utf8", "deep list", "deep object", "nan", "big number", "keys", "gzip", "chunked",
               "type", "huge", "twice", "bom", "utf16", "empty", "short")
