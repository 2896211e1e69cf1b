# SPDX-License-Identifier: Apache-2.0
"""Text files of Windows and others: converted where the encoding is certain, never to a wrong text."""

import codecs

import pytest

from recipe_config import Source
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.text_encoding import find_encoding
from sources.units import list_units


GERMAN = "Die Kündigung bedarf der Schriftform gemäß § 568 BGB. Größere Änderungen – auch „kleine“ – gelten nicht."
FRENCH = "Le locataire est tenu de payer le loyer à la date prévue. À défaut, le bailleur peut résilier le bail."
SPANISH = "El arrendatario está obligado a pagar la renta en el plazo señalado, según la legislación española vigente."
SWEDISH = "Hyresgästen ska betala hyran i tid. Större ändringar får inte göras utan medgivande på förhand."
ENGLISH = "The tenant’s deposit of £500 shall be held by the landlord under the “Scheme” for the term of the lease."
POLISH = "Najemca jest zobowiązany do zapłaty czynszu w terminie. Wypowiedzenie umowy wymaga pisma, świadkowie są."
HUNGARIAN = "A bérlő köteles a bérleti díjat megfizetni. Összesen öt fő, tűzveszélyes. A szerződés írásban szűnik meg."
RUSSIAN = "Арендатор обязан своевременно вносить арендную плату. Расторжение договора совершается письменно."
KOREAN = "임차인은 매월 말일까지 임대료를 지급하여야 한다. 계약의 해지는 서면으로 하여야 한다."
JAPANESE = "賃借人は、毎月末日までに賃料を支払わなければならない。契約の解除は書面によるものとする。"
CHINESE = "承租人应当按照约定的期限支付租金。解除合同应当采用书面形式。"

CERTAIN = [
    *((text, "cp1252") for text in (GERMAN, FRENCH, SPANISH, SWEDISH, ENGLISH)),
    *((text, "latin-1") for text in (FRENCH, SPANISH, SWEDISH)),
    *((text, "cp1250") for text in (POLISH, HUNGARIAN)),
    (POLISH, "iso-8859-2"),
    (RUSSIAN, "cp1251"),
    (KOREAN, "euc-kr"),
    (JAPANESE, "shift-jis"),
    (CHINESE, "gb18030"),
    (GERMAN, "utf-16-le"),
    (GERMAN, "utf-16-be"),
]
# Encodings of old systems: their texts must never be read as those of Windows.
UNCERTAIN = [
    *((text, "mac-roman") for text in (GERMAN.replace("–", "-"), FRENCH, SPANISH, SWEDISH, ENGLISH)),
    *((text, "cp850") for text in (FRENCH, SPANISH, SWEDISH)),
    (RUSSIAN, "koi8-r"),
    (RUSSIAN, "cp866"),
    ("Der Preis beträgt 500 € und ist für die Lieferung gemäß Vertrag fällig.", "iso-8859-15"),
]


@pytest.mark.parametrize("repetitions", [1, 30])
@pytest.mark.parametrize(("text", "encoding"), CERTAIN, ids=lambda value: value[:12])
def test_the_encoding_of_a_short_or_long_text_of_windows_is_found(text, encoding, repetitions):
    content = (text * repetitions).encode(encoding)
    found = find_encoding(content)
    assert found.is_certain and content.decode(found.name) == text * repetitions, found


@pytest.mark.parametrize("length", [20, 40, 60, 10_000])
@pytest.mark.parametrize(("text", "encoding"), UNCERTAIN, ids=lambda value: value[:12])
def test_a_text_of_an_old_system_is_not_converted_to_a_wrong_one(text, encoding, length):
    text = (f"{text} " * 100)[:length]
    content = text.encode(encoding)
    if not content.isascii():
        found = find_encoding(content)
        assert not found.is_certain or content.decode(found.name) == text, found


def test_a_binary_file_called_txt_and_utf_8_with_a_wrong_byte_are_not_converted():
    for content in (
        bytes(range(128, 256)) * 20,
        b"\xff\xd8\xff\xe0 JFIF \x9c\x81" * 9,
        f"{GERMAN * 9}".encode() + b"\xe4",
    ):
        assert not find_encoding(content).is_certain


def test_files_are_read_in_every_unicode_encoding_and_what_is_uncertain_is_named(tmp_path):
    marked = {
        "a": codecs.BOM_UTF8 + GERMAN.encode(),
        "b": GERMAN.encode("utf-16"),
        "c": codecs.BOM_UTF16_BE + GERMAN.encode("utf-16-be"),
        "d": GERMAN.encode("utf-32"),
        "e": GERMAN.encode("cp1252"),
    }
    for name, content in marked.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    (tmp_path / "f.txt").write_bytes((FRENCH * 3).encode("mac-roman"))
    (tmp_path / "g.jsonl").write_bytes('{"text": "für"}\r\n{"text": "zwei"}\n'.encode("utf-16"))
    (tmp_path / "h.json").write_bytes('[{"text": "für"}]'.encode("utf-16"))
    source = Source(name="a", path=str(tmp_path))
    examples = [example for unit in list_units(source) for example in read_unit(source, unit)]
    assert [example["text"] for example in examples[:5]] == [GERMAN] * 5
    found = [example.get("converted_from") for example in examples[:5]]
    assert found == [None, "utf-16", "utf-16", "utf-32", "windows-1252"]
    assert isinstance(examples[5], Unreadable)
    assert examples[5].reason == "not UTF-8; perhaps mac-roman: convert it with iconv -t utf-8 -f mac-roman"
    assert [example["text"] for example in examples[6:]] == ["für", "zwei", "für"]
