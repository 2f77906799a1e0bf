"""Storage URIs: every kind read, every slip answered with a sentence, nothing secret shown."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferplane.domain.errors import Invalid
from inferplane.domain.storage_uri import (
    LOCAL_SCHEMES,
    STORAGE_URI_CHARACTERS_MAX,
    Scheme,
    StorageUri,
    parse_storage_uri,
    redacted,
    require_local,
    where_supported,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models/iris.joblib", StorageUri(Scheme.FILE, "/models/iris.joblib", path="/models/iris.joblib")),
        ("/models/my iris", StorageUri(Scheme.FILE, "/models/my iris", path="/models/my iris")),
        ("//models/iris", StorageUri(Scheme.FILE, "//models/iris", path="/models/iris")),
        ("file:///m/a%20b.pkl", StorageUri(Scheme.FILE, "file:///m/a%20b.pkl", path="/m/a b.pkl")),
        ("file://localhost/m", StorageUri(Scheme.FILE, "file://localhost/m", path="/m")),
        ("FILE:///m", StorageUri(Scheme.FILE, "FILE:///m", path="/m")),
        (
            "http://127.0.0.1:9000/a/b.zip?x=1",
            StorageUri(
                Scheme.HTTP,
                "http://127.0.0.1:9000/a/b.zip?x=1",
                "127.0.0.1",
                "a/b.zip",
                port=9000,
                query="x=1",
            ),
        ),
        ("https://[::1]/m.onnx", StorageUri(Scheme.HTTPS, "https://[::1]/m.onnx", "::1", "m.onnx")),
        ("s3://bucket", StorageUri(Scheme.S3, "s3://bucket", "bucket")),
        (
            "s3://models.example.com/demo/1",
            StorageUri(Scheme.S3, "s3://models.example.com/demo/1", "models.example.com", "demo/1"),
        ),
        ("s3://b/odd?key#1", StorageUri(Scheme.S3, "s3://b/odd?key#1", "b", "odd?key#1")),
        (
            "gs://kfserving-examples/models/sklearn/1.0/model",
            StorageUri(
                Scheme.GS,
                "gs://kfserving-examples/models/sklearn/1.0/model",
                "kfserving-examples",
                "models/sklearn/1.0/model",
            ),
        ),
        ("hf://owner/repo", StorageUri(Scheme.HF, "hf://owner/repo", "owner/repo")),
        (
            "hf://owner/repo:v1.0",
            StorageUri(Scheme.HF, "hf://owner/repo:v1.0", "owner/repo", revision="v1.0"),
        ),
        (
            "hf://owner/repo@main/sub/model.onnx",
            StorageUri(
                Scheme.HF,
                "hf://owner/repo@main/sub/model.onnx",
                "owner/repo",
                "sub/model.onnx",
                revision="main",
            ),
        ),
        (
            "hf://owner/repo:refs/pr/7/m.joblib",
            StorageUri(
                Scheme.HF,
                "hf://owner/repo:refs/pr/7/m.joblib",
                "owner/repo",
                "m.joblib",
                revision="refs/pr/7",
            ),
        ),
        (
            "hf://owner/repo/m.joblib",
            StorageUri(Scheme.HF, "hf://owner/repo/m.joblib", "owner/repo", "m.joblib"),
        ),
        ("pvc://claim/models/a", StorageUri(Scheme.PVC, "pvc://claim/models/a", "claim", "models/a")),
        (
            "oci://registry.example.com:5000/team/model:1",
            StorageUri(
                Scheme.OCI,
                "oci://registry.example.com:5000/team/model:1",
                "registry.example.com:5000",
                "team/model:1",
            ),
        ),
        ("oci+native://r/m:1", StorageUri(Scheme.OCI, "oci+native://r/m:1", "r", "m:1")),
        ("models:/iris/3", StorageUri(Scheme.MODELS, "models:/iris/3", "iris", revision="3")),
        (
            "models:/an iris/latest",
            StorageUri(Scheme.MODELS, "models:/an iris/latest", "an iris", revision="latest"),
        ),
        ("models:/iris@best", StorageUri(Scheme.MODELS, "models:/iris@best", "iris", revision="@best")),
        ("models:/m-0af3", StorageUri(Scheme.MODELS, "models:/m-0af3", "m-0af3")),
        ("  s3://b/k  ", StorageUri(Scheme.S3, "s3://b/k", "b", "k")),
    ],
)
def test_what_is_understood(text: str, expected: StorageUri) -> None:
    assert parse_storage_uri(text) == expected


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("", "InvalidStorageUri", "empty"),
        ("   ", "InvalidStorageUri", "empty"),
        ("models/iris", "InvalidStorageUri", "neither a URI nor an absolute path"),
        ("./iris.joblib", "InvalidStorageUri", "neither"),
        ("C:\\models", "InvalidStorageUri", "neither"),
        ("/models/a\nb", "InvalidStorageUri", "line break"),
        ("s3://bucket/a b", "InvalidStorageUri", "blank"),
        ("s3://", "InvalidStorageUri", "bucket"),
        ("s3:///key", "InvalidStorageUri", "bucket"),
        ("gs://bu_cket!/k", "InvalidStorageUri", "bucket"),
        ("s3://b/../../etc", "InvalidStorageUri", ".."),
        ("hf://owner", "InvalidStorageUri", "repository"),
        ("hf://owner/", "InvalidStorageUri", "repository"),
        ("hf://owner/repo:", "InvalidStorageUri", "revision"),
        ("hf://owner/repo:a/../../b", "InvalidStorageUri", ".."),
        ("hf://../repo", "InvalidStorageUri", "repository"),
        ("pvc://Claim/x", "InvalidStorageUri", "claim"),
        ("oci://registry", "InvalidStorageUri", "registry/image"),
        ("file://host/path", "InvalidStorageUri", "names no host"),
        ("file://", "InvalidStorageUri", "names no path"),
        ("file:///a%00b", "InvalidStorageUri", "control"),
        ("https://example.com", "InvalidStorageUri", "names no file"),
        ("https:///model.joblib", "InvalidStorageUri", "host"),
        ("http://ex ample/m", "InvalidStorageUri", "blank"),
        ("http://host:99999/m", "InvalidStorageUri", "malformed|range"),
        ("http://[::1/m", "InvalidStorageUri", "cannot be read"),
        ("http://" + "a" * STORAGE_URI_CHARACTERS_MAX, "InvalidStorageUri", "longer"),
        ("https://user:pass@host/m.joblib", "CredentialsInUri", "user name or password"),
        ("s3://key:secret@bucket/m", "CredentialsInUri", "user name or password"),
        ("ftp://host/m", "SchemeNotSupported", "FTP"),
        ("hdfs://nn/m", "SchemeNotSupported", "HDFS"),
        ("webhdfs://nn/m", "SchemeNotSupported", "WebHDFS"),
        ("azure://acc/c/m", "SchemeNotSupported", "Azure"),
        ("abfss://c@acc/m", "SchemeNotSupported", "Azure"),
        ("models:/iris", "InvalidStorageUri", "names no version"),
        ("models:/iris/", "InvalidStorageUri", "names no version"),
        ("models:/iris/1/more", "InvalidStorageUri", "names no version"),
        ("models:/iris@", "InvalidStorageUri", "names no version"),
        ("models:/@champion", "InvalidStorageUri", "names no version"),
        ("models://registry/iris/1", "InvalidStorageUri", "names no version"),
        ("htps://host/m", "SchemeNotSupported", "did you mean https://"),
        ("javascript://x/y", "SchemeNotSupported", "not a known kind"),
    ],
)
def test_what_is_refused_and_why(text: str, reason: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        parse_storage_uri(text, field="rawModelSpec.x")
    assert caught.value.reason == reason
    assert caught.value.field == "rawModelSpec.x"


def test_a_refusal_does_not_repeat_a_password() -> None:
    for text in (
        "https://user:hunter2@host/m",
        "https://user:hunter2@[::1/m",
        "ftp://user:hunter2@h/m",
        "x:hunter2@h",
    ):
        with pytest.raises(Invalid) as caught:
            parse_storage_uri(text)
        if "://" in text:
            assert "hunter2" not in caught.value.message


def test_each_scheme_says_where_it_works() -> None:
    for scheme in Scheme:
        expected = "every cluster" if scheme in LOCAL_SCHEMES else "engine kserve"
        expected = "engine local" if scheme in (Scheme.MODELS, Scheme.FILE) else expected
        assert expected in where_supported(scheme)


def test_the_local_engine_refuses_what_only_clusters_can_fetch() -> None:
    require_local(parse_storage_uri("s3://b/k"))
    for text in ("pvc://claim/m", "oci://registry/m:1"):
        with pytest.raises(Invalid, match="works on clusters with engine kserve") as caught:
            require_local(parse_storage_uri(text), field="f")
        assert (caught.value.reason, caught.value.field) == ("SchemeNotSupported", "f")


def test_the_file_name_is_decoded() -> None:
    assert parse_storage_uri("https://h/a%20b.joblib?x=y").file_name == "a b.joblib"
    assert parse_storage_uri("https://h/folder/").file_name == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/m.joblib", "https://host/m.joblib"),
        ("https://host/m?version=2&lang=en", "https://host/m?version=2&lang=en"),
        ("https://user:pw@host/m", "https://***@host/m"),
        ("https://user@host/m", "https://***@host/m"),
        ("https://u:p/w@host/m", "https://***@host/m"),
        ("https://u:p?w@host/m", "https://***@host/m"),
        ("https://u:p@w@host/m", "https://***@host/m"),
        ("hf://owner/repo@main/f", "hf://owner/repo@main/f"),
        (
            "https://b.s3.amazonaws.com/m?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F2026&X-Amz-Date=2026"
            "&X-Amz-Expires=60&X-Amz-Security-Token=FwoG&X-Amz-Signature=abcd",
            "https://b.s3.amazonaws.com/m?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=***&X-Amz-Date=2026"
            "&X-Amz-Expires=60&X-Amz-Security-Token=***&X-Amz-Signature=***",
        ),
        (
            "https://b/m?AWSAccessKeyId=AKIA&Expires=1&Signature=a%2Bb%3D",
            "https://b/m?AWSAccessKeyId=***&Expires=1&Signature=***",
        ),
        (
            "https://storage.googleapis.com/b/m?GoogleAccessId=me%40p&Signature=xy",
            "https://storage.googleapis.com/b/m?GoogleAccessId=***&Signature=***",
        ),
        (
            "https://a.blob.core.windows.net/c/m?sv=2022&se=2026&sr=b&sp=r&sig=abc%3D",
            "https://a.blob.core.windows.net/c/m?sv=2022&se=2026&sr=b&sp=r&sig=***",
        ),
        ("https://h/m?token=t", "https://h/m?token=***"),
        ("https://h/m?access_token=t#x", "https://h/m?access_token=***#x"),
        ("https://h/m#access_token=t", "https://h/m#access_token=***"),
        ("https://h/m?a=1;token=t", "https://h/m?a=1;token=***"),
        ("https://h/m?X%2DAmz%2DSignature=t", "https://h/m?X%2DAmz%2DSignature=***"),
        (
            "https://h/m?api_key=t&apikey=u&x-api-key=v&key=w",
            "https://h/m?api_key=***&apikey=***&x-api-key=***&key=***",
        ),
        ("https://h/m?Policy=p&Key-Pair-Id=k", "https://h/m?Policy=***&Key-Pair-Id=***"),
        ("https://h/m?id=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "https://h/m?id=***"),
        ("GET https://u:p@h/m?sig=x failed with 403", "GET https://***@h/m?sig=*** failed with 403"),
        ("no URL at all", "no URL at all"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_uri(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "x://" + ":" * 200_000,
        "x://" + "a:" * 100_000,
        "x://" * 50_000,
        "x" * 200_000,
        "?" + "a" * 200_000,
        "?" + "a=;" * 60_000,
        "eyJ" * 60_000,
        "=eyJ" * 50_000,
        "x://a@" * 30_000,
        "x://a:b" * 30_000,
    ],
    ids=range(10),
)
def test_a_long_text_takes_no_more_than_its_share_of_time(text: str) -> None:
    """No assertion on time: what was quadratic here took minutes."""
    once = redacted(text)
    assert redacted(once) == once


_WORD = st.text(string.ascii_letters + string.digits + "-._~%+/=", min_size=8, max_size=30)
_SECRET_NAMES = st.sampled_from(
    [
        "X-Amz-Signature",
        "X-Amz-Credential",
        "X-Amz-Security-Token",
        "sig",
        "token",
        "access_token",
        "AWSAccessKeyId",
        "Signature",
        "api_key",
        "apikey",
        "Secret-Key",
        "password",
        "auth",
        "X-Goog-Signature",
        "key",
        "jwt",
    ]
)


@given(secret=_WORD.map(lambda word: f"SECRET{word}"), name=_SECRET_NAMES, before=_WORD, after=_WORD)
def test_the_value_of_a_telling_parameter_is_never_shown(
    secret: str, name: str, before: str, after: str
) -> None:
    shown = redacted(f"https://host/m?a={before}&{name}={secret}&z={after}")
    assert secret not in shown
    assert name in shown


@given(
    user=st.text(string.ascii_letters, min_size=1, max_size=8),
    password=st.text(string.ascii_letters + string.digits + "-._~%!$&'()*+,;=:", min_size=6).map(
        lambda text: f"SECRET{text}"
    ),
)
def test_user_information_is_never_shown(user: str, password: str) -> None:
    assert "SECRET" not in redacted(f"https://{user}:{password}@host:8080/path/m.joblib")


@given(st.text())
@example("https://:@@/")
@example("://@")
def test_redacting_is_total_and_settled_after_once(text: str) -> None:
    once = redacted(text)
    assert redacted(once) == once


@given(
    st.one_of(
        st.text(),
        st.builds(
            lambda scheme, rest: f"{scheme}://{rest}",
            st.sampled_from([*Scheme, "ftp", "hdfs", "oci+fetch", "x"]),
            st.text(string.printable),
        ),
    )
)
@example("http://[")
@example("http://a]b/c")
@example("http://h:port/c")
@example("http://ﬀ/c")  # normalises to two letters; urlsplit raises for some of these
@example("http://℀/c")
@example("file:///\ud800")
def test_parsing_any_text_gives_a_uri_or_invalid(text: str) -> None:
    try:
        uri = parse_storage_uri(text)
    except Invalid as refusal:
        blamed = refusal.field
    else:
        blamed = "modelSpec.storageURI"
        assert uri.text == text.strip()
        assert parse_storage_uri(uri.text) == uri
        assert "\n" not in uri.path
    assert blamed == "modelSpec.storageURI"
