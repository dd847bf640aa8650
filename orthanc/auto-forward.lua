-- Forwards what the PACS receives to the node, when the environment asks for it.
--
-- OVERREAD_FORWARD=studies    a study, once Orthanc calls it stable (ORTHANC_STABLE_AGE seconds without a new instance)
-- OVERREAD_FORWARD=instances  every instance at once, whoever sent it: also what the node itself sends back
-- anything else, or nothing   no forwarding
--
-- The target is the modality "overread" of orthanc.json.

local mode = os.getenv('OVERREAD_FORWARD') or 'off'

function OnStoredInstance(instanceId, tags, metadata, origin)
   if mode == 'instances' then
      SendToModality(instanceId, 'overread')
   end
end

function OnStableStudy(studyId, tags, metadata)
   if mode == 'studies' then
      -- SendToModality takes instances only; a store job sends the whole study over one association.
      RestApiPost('/modalities/overread/store', DumpJson({ Resources = { studyId }, Asynchronous = true }))
   end
end
