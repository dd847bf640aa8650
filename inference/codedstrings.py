"""Which coded strings (CS) of an image are known to name nobody.

A coded string is at most 16 capitals, digits, blanks and underscores (PS3.5 Section 6.2), and most are chosen by the
scanner. Body Part Examined (0018,0015) is what people type, so it is kept only where it is one of the standard's terms.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["harmless"]

_CODED: Final = re.compile(r"[A-Z0-9_ ]{0,16}")
#: Defined Terms of PS3.16 Annex L, and two that scanners write in their place.
_BODY_PARTS: Final = """
    ABDOMEN ABDOMENPELVIS ADRENAL ANKLE ANUS AORTA ARM AXILLA BACK BILEDUCT BLADDER BRAIN BREAST BRONCHUS BUTTOCK
    CALCANEUS CALF CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX
    COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT
    FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE KUB LARYNX LEG
    LIVER LSPINE LSSPINE LUNG MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE
    ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RADIUSULNA RECTUM RIB SCALP SCAPULA SCLERA
    SCROTUM SHOULDER SI SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH THORAX THUMB THYMUS
    THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA URETER URETHRA UTERUS VAGINA WHOLEBODY WRIST
    ZYGOMA
"""


def harmless(keyword: str, text: str) -> str:
    """Return a coded string where it may stay, and nothing in its place where not."""
    text = text.strip()
    kept = text in _BODY_PARTS.split() if keyword == "BodyPartExamined" else _CODED.fullmatch(text) is not None
    return text if kept else ""
